-- The tables and functions of one set of locks, version {version}. Names in braces are put in,
-- quoted. All of it may be run again: it adds what is missing. The names of functions have the
-- version in them, so that programs of two versions can work side by side, and a hash of the
-- names in their bodies, so that none is found whose tables were renamed.
--
-- How a grant is decided. Under READ COMMITTED a statement that has waited for a row sees
-- that row's newest version, but everything else as it was before the wait. So a statement
-- that decides alone looks at the lock's own row and nothing else (crowd says that there is
-- more to see), and whatever looks further locks that row first and reads on in new
-- statements, as a VOLATILE plpgsql function does. All writers of a key lock its row, so
-- what they have read stays true until they commit; but for a waiter that keeps its place,
-- which changes nothing for others. Times are clock_timestamp(), read when the row is locked:
-- now() would be from before the wait.
--
-- What is over must stay over when the clock is set back. So whoever grants the lock to a writer
-- deletes the rows of readers, which all are dead then, and whoever grants it deletes the owner's
-- place in line, dead or alive.
--
-- What is beside a lock's row belongs to it. Whoever makes the row deletes what another has
-- left, and nothing of a key lives without it: so if any row is lost, a grant is.

DO {body}
BEGIN
	IF substring(obj_description(to_regclass('{locks_literal}'), 'pg_class') from '^lock/postgres ([0-9]+)')::int > {version} THEN
		RAISE EXCEPTION 'lock: the schema is newer than version {version}' USING ERRCODE = 'LK002';
	END IF;
END
{body};

CREATE TABLE IF NOT EXISTS {locks} (key bytea PRIMARY KEY)
	WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE {locks}
	ADD COLUMN IF NOT EXISTS token    bigint NOT NULL DEFAULT 0,      -- the highest granted; 0 if none was
	ADD COLUMN IF NOT EXISTS owner    text,                           -- of the exclusive grant; null if there is none
	ADD COLUMN IF NOT EXISTS expires  timestamptz,
	ADD COLUMN IF NOT EXISTS process  text,                           -- the owner's, if it can be notified
	ADD COLUMN IF NOT EXISTS metadata text,                           -- JSON, or null
	ADD COLUMN IF NOT EXISTS crowd    boolean NOT NULL DEFAULT false, -- whether the next three tables may have rows
	ADD COLUMN IF NOT EXISTS line     int NOT NULL DEFAULT 0,         -- how many places there are in line
	ADD COLUMN IF NOT EXISTS swept    timestamptz NOT NULL DEFAULT '-infinity', -- when dead rows were last deleted
	ALTER COLUMN token SET DEFAULT 0;

CREATE TABLE IF NOT EXISTS {readers} (
	key      bytea NOT NULL,
	owner    text NOT NULL,
	token    bigint NOT NULL,
	expires  timestamptz NOT NULL,
	process  text,
	metadata text,
	PRIMARY KEY (key, owner)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- The line, by ticket: the arrival in µs, less the head start. A place lives until its deadline,
-- which its waiter's heartbeats put off. A live place is a reservation: nobody behind it, and
-- nobody new, is granted the lock. Older versions drew tickets from a sequence: for those that
-- still run, the default is a ticket without a head start.
CREATE TABLE IF NOT EXISTS {waiters} (
	key      bytea NOT NULL,
	owner    text NOT NULL,
	ticket   bigint NOT NULL,
	shared   boolean NOT NULL,
	ttl      interval NOT NULL,
	arrived  timestamptz NOT NULL,
	deadline timestamptz NOT NULL,
	process  text NOT NULL,
	listens  boolean NOT NULL,                    -- whether the process can be notified
	metadata text,
	PRIMARY KEY (key, owner),
	UNIQUE (key, ticket)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
ALTER TABLE {waiters}
	ALTER COLUMN ticket DROP IDENTITY IF EXISTS,
	ALTER COLUMN ticket SET DEFAULT (date_part('epoch', clock_timestamp()) * 1000000::float8)::bigint;

-- Tombstones: of owners whose acquisition was undone, so that a late request of theirs is
-- refused, and of those whose grant was ended by force, so that they are told why.
CREATE TABLE IF NOT EXISTS {tombstones} (
	key     bytea NOT NULL,
	owner   text NOT NULL,
	forced  boolean NOT NULL,
	expires timestamptz NOT NULL,
	PRIMARY KEY (key, owner)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
CREATE INDEX IF NOT EXISTS {tombstones_expires} ON {tombstones} (expires);

-- The fences: the newest token that a resource has seen. They are locked for as long as a
-- user's transaction takes, so nothing below ever waits for them, and they never expire.
CREATE TABLE IF NOT EXISTS {marks} (
	key   bytea PRIMARY KEY,
	token bigint NOT NULL
) WITH (fillfactor = 50);

-- How much longer a lease lasts, at least 1 s; null if this store has not granted that token. A
-- fence that has waited for its mark sees the lease as it is then, since this is VOLATILE.
CREATE OR REPLACE FUNCTION {remaining}(key_ bytea, token_ bigint) RETURNS interval
LANGUAGE sql VOLATILE AS {body}
	SELECT greatest('1 s', CASE WHEN l.token = token_ AND l.owner IS NOT NULL THEN l.expires - clock_timestamp() END,
		(SELECT r.expires - clock_timestamp() FROM {readers} r WHERE r.key = key_ AND r.token = token_))
	FROM {locks} l WHERE l.key = key_ AND l.token >= token_
{body};

CREATE OR REPLACE FUNCTION {micros}(span_ interval) RETURNS bigint
LANGUAGE sql IMMUTABLE AS {body}
	SELECT (date_part('epoch', span_) * 1000000::float8)::bigint
{body};

-- A new token: the time in µs, but always greater than the last.
CREATE OR REPLACE FUNCTION {mint}(last_ bigint) RETURNS bigint
LANGUAGE sql VOLATILE AS {body}
	SELECT greatest(last_ + 1, (date_part('epoch', clock_timestamp()) * 1000000::float8)::bigint)
{body};

-- Whether anything of the key is beside its row.
CREATE OR REPLACE FUNCTION {crowded}(key_ bytea) RETURNS boolean
LANGUAGE sql VOLATILE AS {body}
	SELECT EXISTS (SELECT FROM {waiters} WHERE key = key_)
		OR EXISTS (SELECT FROM {readers} WHERE key = key_)
		OR EXISTS (SELECT FROM {tombstones} WHERE key = key_)
{body};

-- Deletes what is dead beside the lock's row, and counts what lives. The row is locked.
CREATE OR REPLACE FUNCTION {sweep}(key_ bytea) RETURNS {locks}
LANGUAGE plpgsql VOLATILE AS {body}
DECLARE
	l {locks};
	t timestamptz := clock_timestamp();
BEGIN
	DELETE FROM {readers} WHERE key = key_ AND expires <= t;
	DELETE FROM {waiters} WHERE key = key_ AND deadline <= t;
	DELETE FROM {tombstones} WHERE key = key_ AND expires <= t;
	UPDATE {locks} SET swept = t, crowd = {crowded}(key_), line = (SELECT count(*) FROM {waiters} WHERE key = key_)
	WHERE key = key_ RETURNING * INTO l;
	RETURN l;
END
{body};

-- Locks the row of a key and returns it; if there is none it makes one, or returns null.
--
-- It sees to what all that follows needs. What reads beyond the row is sound under READ
-- COMMITTED only: elsewhere the caller is told to send it again in a transaction of that
-- level. A standby, which may be behind, is not asked even who holds a lock. And a grant is on
-- disk when it is acknowledged, whatever the default of the database.
--
-- Dead rows are nobody's, so they may wait: each second they are deleted once.
CREATE OR REPLACE FUNCTION {open}(key_ bytea, make_ boolean) RETURNS {locks}
LANGUAGE plpgsql VOLATILE AS {body}
DECLARE l {locks};
BEGIN
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		RAISE EXCEPTION 'lock: must run under READ COMMITTED' USING ERRCODE = 'LK001';
	ELSIF current_setting('transaction_read_only') = 'on' THEN
		RAISE read_only_sql_transaction USING MESSAGE = 'lock: must not be read-only';
	ELSIF current_setting('synchronous_commit') = 'off' THEN
		PERFORM set_config('synchronous_commit', 'local', true);
	END IF;
	LOOP
		SELECT * INTO l FROM {locks} WHERE key = key_ FOR UPDATE;
		EXIT WHEN FOUND OR NOT make_;
		INSERT INTO {locks} (key) VALUES (key_) ON CONFLICT DO NOTHING;
		IF FOUND THEN
			DELETE FROM {readers} WHERE key = key_;
			DELETE FROM {waiters} WHERE key = key_;
			UPDATE {locks} SET crowd = true WHERE key = key_ AND {crowded}(key_);
		END IF;
	END LOOP;
	IF l.crowd AND l.swept < clock_timestamp() - interval '1 s' THEN
		l := {sweep}(key_);
	END IF;
	RETURN l;
END
{body};

-- What is known of a key, as JSON; times in µs. Of the line only what is before a ticket, if
-- that is not null, and nothing unless line_. waiting_ is how many wait, if that is known:
-- a long line takes its time to count. STABLE: it sees what its caller sees.
CREATE OR REPLACE FUNCTION {record}(lock_ {locks}, now_ timestamptz, line_ boolean, before_ bigint, waiting_ bigint) RETURNS json
LANGUAGE sql STABLE AS {body}
	SELECT pg_catalog.json_build_object('key', encode(lock_.key, 'hex'), 'token', lock_.token,
		'held', CASE WHEN lock_.expires > now_ AND lock_.owner IS NOT NULL THEN 1 WHEN lock_.crowd THEN
			(SELECT count(*) FROM {readers} WHERE key = lock_.key AND expires > now_) ELSE 0 END,
		'holders', (SELECT pg_catalog.json_agg(pg_catalog.json_build_object('o', h.owner, 't', h.token, 's', h.shared, 'm', h.metadata,
				'l', {micros}(h.expires - now_), 'h', (date_part('epoch', now_) * 1000000::float8)::bigint - h.token)) FROM (
			SELECT lock_.owner, lock_.token, lock_.expires, lock_.metadata, false AS shared
			WHERE lock_.owner IS NOT NULL AND lock_.expires > now_
			UNION ALL
			(SELECT owner, token, expires, metadata, true FROM {readers}
			WHERE lock_.crowd AND key = lock_.key AND expires > now_ ORDER BY token LIMIT {most})) h),
		'waiting', CASE WHEN lock_.crowd THEN coalesce(waiting_,
			(SELECT count(*) FROM {waiters} WHERE key = lock_.key AND deadline > now_)) ELSE 0 END,
		'waiters', CASE WHEN line_ AND lock_.crowd THEN
			(SELECT pg_catalog.json_agg(pg_catalog.json_build_object('o', w.owner, 's', w.shared, 'm', w.metadata, 'w', {micros}(now_ - w.arrived)) ORDER BY ticket)
			FROM (SELECT * FROM {waiters} WHERE key = lock_.key AND deadline > now_ AND (before_ IS NULL OR ticket < before_)
				ORDER BY ticket LIMIT {most}) w) END)
{body};

-- Sends a message to a process. A server that takes no writes is none to speak for the locks.
CREATE OR REPLACE FUNCTION {notify}(process_ text, payload_ text) RETURNS text
LANGUAGE plpgsql VOLATILE AS {body}
BEGIN
	IF current_setting('transaction_read_only') = 'on' THEN
		RAISE read_only_sql_transaction USING MESSAGE = 'lock: must not be read-only';
	END IF;
	PERFORM pg_notify('lock_' || process_, payload_);
	RETURN '1';
END
{body};

-- Passes a lock on that has no exclusive holder any more. Its row is locked; lock_ is what
-- the row was, which this writes anew. A next waiter from process near_, whose call this
-- is, is granted the lock at once: the reply is its proof, for which the process took the
-- start before it asked. Readers from there are named in the reply, to be woken. Any other
-- waiter is notified, unless tell_ is false, and claims by its own acquire; NOTIFY makes
-- commits of the whole server wait for each other, so there is none when nobody waits
-- elsewhere.
--
-- Returns '1' if nobody waits, or {"owner", "token"} of who has the lock now, or {"wake": owners}.
CREATE OR REPLACE FUNCTION {pass}(lock_ {locks}, now_ timestamptz, near_ text, tell_ boolean) RETURNS text
LANGUAGE plpgsql VOLATILE AS {body}
DECLARE
	w {waiters};
	other {waiters};
	minted bigint;
	names text[] := '{}';
BEGIN
	IF lock_.crowd THEN
		SELECT * INTO w FROM {waiters} WHERE key = lock_.key AND deadline > now_ ORDER BY ticket LIMIT 1;
	END IF;
	IF w.owner IS NULL THEN
		UPDATE {locks} SET owner = NULL, crowd = lock_.crowd AND {crowded}(lock_.key) WHERE key = lock_.key;
		RETURN '1';
	ELSIF NOT w.shared AND EXISTS (SELECT FROM {readers} WHERE key = lock_.key AND expires > now_) THEN
		UPDATE {locks} SET owner = NULL WHERE key = lock_.key;
		RETURN '{"wake": []}';
	ELSIF NOT w.shared AND w.process = near_ THEN
		DELETE FROM {readers} WHERE key = w.key; -- see above
		DELETE FROM {waiters} WHERE key = w.key AND owner = w.owner;
		UPDATE {locks} SET token = {mint}(token), owner = w.owner, expires = now_ + w.ttl,
			process = CASE WHEN w.listens THEN w.process END, metadata = w.metadata, line = line - 1
		WHERE key = w.key RETURNING token INTO minted;
		RETURN pg_catalog.json_build_object('owner', w.owner, 'token', minted);
	END IF;

	UPDATE {locks} SET owner = NULL WHERE key = lock_.key;
	FOR other IN
		SELECT * FROM {waiters} WHERE key = w.key AND deadline > now_ AND (ticket = w.ticket OR w.shared AND ticket <
			(SELECT coalesce(min(ticket), 9223372036854775807) FROM {waiters} WHERE key = w.key AND NOT shared AND deadline > now_))
	LOOP
		IF other.process = near_ THEN
			names := pg_catalog.array_append(names, other.owner);
		ELSIF other.listens AND tell_ THEN
			PERFORM {notify}(other.process, 'wake ' || other.owner);
		END IF;
	END LOOP;
	RETURN pg_catalog.json_build_object('wake', names);
END
{body};

-- Acquires a lock, or stands in line for it if beat_, the heartbeat, is not null. line_ asks
-- for those in front too. head_ is the head start in µs.
--
-- Returns the token in digits, or
--   {"undone": true} when an undo of this owner has overtaken this request; or
--   {"recheck": µs until nothing known is in the way, "ahead": waiters in the way, some at most,
--    "record": {...}}.
CREATE OR REPLACE FUNCTION {acquire}(key_ bytea, owner_ text, ttl_ interval, shared_ boolean,
	process_ text, listens_ boolean, metadata_ text, beat_ interval, line_ boolean, head_ bigint) RETURNS text
LANGUAGE plpgsql VOLATILE AS {body}
DECLARE
	l {locks};
	t timestamptz := clock_timestamp();
	until timestamptz; -- the last moment at which what is in the way ends by itself
	mine bigint;       -- the ticket of a place in line
	place bigint;      -- who has a lower ticket is in front; null: all
	arrival bigint;    -- in µs, after the last ticket should the clock have been set back
	ahead bigint := 0;
	minted bigint;
	reply json;
BEGIN
	IF beat_ IS NULL AND current_setting('transaction_read_only') = 'off' THEN
		-- What is seen to be held is refused without a lock or a write.
		SELECT * INTO l FROM {locks} WHERE key = key_ AND owner <> owner_ AND expires > t;
		IF FOUND THEN
			RETURN pg_catalog.json_build_object('recheck', {micros}(l.expires - t), 'ahead', 0, 'record', {record}(l, t, line_, NULL, l.line));
		END IF;
	END IF;

	l := {open}(key_, true);
	t := clock_timestamp();
	IF l.crowd AND EXISTS (SELECT FROM {tombstones} WHERE key = key_ AND owner = owner_ AND expires > t) THEN
		RETURN '{"undone": true}';
	END IF;

	-- This request may have been sent again after an unknown outcome: one owner, one grant. It
	-- may be the first copy that comes late, so what a renewal has put off stays put off.
	IF l.owner IS NOT NULL AND l.expires > t THEN
		until := l.expires;
		IF l.owner = owner_ THEN
			UPDATE {locks} SET expires = greatest(expires, t + ttl_) WHERE key = key_;
			RETURN l.token;
		END IF;
	END IF;
	IF shared_ AND l.crowd THEN
		UPDATE {readers} SET expires = greatest(expires, t + ttl_)
		WHERE key = key_ AND owner = owner_ AND expires > t RETURNING token INTO minted;
		IF FOUND THEN RETURN minted; END IF;
	END IF;

	-- In the way of a reader: the writer, and writers in front of it. Of a writer: anybody.
	-- How many more there are in a long line makes no difference.
	arrival := (date_part('epoch', t) * 1000000::float8)::bigint;
	IF l.crowd THEN
		SELECT ticket INTO mine FROM {waiters} WHERE key = key_ AND owner = owner_ AND deadline > t;
		place := mine;
		IF mine IS NULL AND beat_ IS NOT NULL THEN
			SELECT greatest(arrival, max(ticket) + 1) INTO arrival FROM {waiters} WHERE key = key_;
			place := CASE WHEN head_ > 0 THEN arrival - head_ + 1 END; -- behind who has the same
		END IF;
		SELECT count(*), greatest(until, max(deadline)) INTO ahead, until FROM (
			SELECT deadline FROM {waiters}
			WHERE key = key_ AND deadline > t AND (place IS NULL OR ticket < place) AND NOT (shared_ AND shared)
			ORDER BY ticket LIMIT 64) front;
		IF NOT shared_ THEN
			SELECT greatest(until, max(expires)) INTO until FROM {readers} WHERE key = key_ AND expires > t;
		END IF;
	END IF;

	IF until IS NULL THEN
		IF l.crowd THEN
			DELETE FROM {waiters} WHERE key = key_ AND owner = owner_;
			l.line := l.line - FOUND::int;
		END IF;
		IF shared_ THEN
			UPDATE {locks} SET token = {mint}(token), owner = NULL, crowd = true, line = l.line
			WHERE key = key_ RETURNING token INTO minted;
			INSERT INTO {readers} AS r (key, owner, token, expires, process, metadata)
			VALUES (key_, owner_, minted, t + ttl_, CASE WHEN listens_ THEN process_ END, metadata_)
			ON CONFLICT (key, owner) DO UPDATE SET token = excluded.token, expires = excluded.expires;
		ELSE
			IF l.crowd THEN
				DELETE FROM {readers} WHERE key = key_; -- see above
			END IF;
			UPDATE {locks} SET token = {mint}(token), owner = owner_, expires = t + ttl_,
				process = CASE WHEN listens_ THEN process_ END, metadata = metadata_,
				crowd = l.crowd AND {crowded}(key_), line = l.line
			WHERE key = key_ RETURNING token INTO minted;
		END IF;
		RETURN minted;
	END IF;

	reply := pg_catalog.json_build_object('recheck', {micros}(until - t), 'ahead', ahead,
		'record', {record}(l, t, line_, place, l.line - (mine IS NOT NULL)::int));
	IF mine IS NOT NULL AND beat_ IS NOT NULL THEN
		-- Another process may go on with the wait.
		UPDATE {waiters} SET deadline = t + beat_, ttl = ttl_, process = process_, listens = listens_
		WHERE key = key_ AND owner = owner_;
	ELSIF beat_ IS NOT NULL THEN
		IF l.crowd THEN
			DELETE FROM {waiters} WHERE key = key_ AND owner = owner_; -- a dead place is lost
			l.line := l.line - FOUND::int;
		END IF;
		LOOP
			INSERT INTO {waiters} (key, owner, ticket, shared, ttl, arrived, deadline, process, listens, metadata)
			VALUES (key_, owner_, arrival - head_, shared_, ttl_, t, t + beat_, process_, listens_, metadata_)
			ON CONFLICT (key, ticket) DO NOTHING;
			EXIT WHEN FOUND;
			arrival := arrival + 1;
		END LOOP;
		UPDATE {locks} SET crowd = true, line = l.line + 1 WHERE key = key_;
	END IF;
	-- Nothing that a crash may not take: the waiter lines up again at its next heartbeat.
	PERFORM set_config('synchronous_commit', 'off', true);
	RETURN reply;
END
{body};

-- Why an owner's grant is not there: '3' when it was ended by force, '2' when somebody else
-- has the lock, else '0'.
CREATE OR REPLACE FUNCTION {missing}(lock_ {locks}, now_ timestamptz, owner_ text) RETURNS text
LANGUAGE sql STABLE AS {body}
	SELECT CASE
		WHEN lock_.crowd AND EXISTS (SELECT FROM {tombstones} WHERE key = lock_.key AND owner = owner_ AND forced) THEN '3'
		WHEN lock_.owner <> owner_ AND lock_.expires > now_ THEN '2'
		WHEN lock_.crowd AND EXISTS (SELECT FROM {readers} WHERE key = lock_.key AND owner <> owner_ AND expires > now_) THEN '2'
		ELSE '0' END
{body};

-- Restarts the TTL of a grant. It never creates one. Returns '1', or what missing says.
CREATE OR REPLACE FUNCTION {renew}(key_ bytea, owner_ text, token_ bigint, shared_ boolean, ttl_ interval) RETURNS text
LANGUAGE plpgsql VOLATILE AS {body}
DECLARE
	l {locks} := {open}(key_, false);
	t timestamptz := clock_timestamp();
BEGIN
	IF l.key IS NULL THEN
		RETURN '0';
	ELSIF shared_ THEN
		UPDATE {readers} SET expires = t + ttl_
		WHERE key = key_ AND owner = owner_ AND token = token_ AND expires > t;
	ELSE
		UPDATE {locks} SET expires = t + ttl_
		WHERE key = key_ AND owner = owner_ AND token = token_ AND expires > t;
	END IF;
	IF FOUND THEN RETURN '1'; END IF;
	RETURN {missing}(l, t, owner_);
END
{body};

-- Ends a grant and passes the lock on. Returns what pass does, or what missing says. Only a
-- new grant has to be on disk: a release that a crash takes back ends with its TTL.
CREATE OR REPLACE FUNCTION {release}(key_ bytea, owner_ text, token_ bigint, shared_ boolean, near_ text, tell_ boolean) RETURNS text
LANGUAGE plpgsql VOLATILE AS {body}
DECLARE
	l {locks} := {open}(key_, false);
	t timestamptz := clock_timestamp();
	reply text := '{"wake": []}';
BEGIN
	IF l.key IS NULL THEN
		RETURN '0';
	ELSIF shared_ THEN
		DELETE FROM {readers} WHERE key = key_ AND owner = owner_ AND token = token_ AND expires > t;
		IF NOT FOUND THEN RETURN {missing}(l, t, owner_); END IF;
		IF NOT EXISTS (SELECT FROM {readers} WHERE key = key_ AND expires > t) THEN
			reply := {pass}(l, t, near_, tell_);
		END IF;
	ELSIF l.owner = owner_ AND l.token = token_ AND l.expires > t THEN
		reply := {pass}(l, t, near_, tell_);
	ELSE
		RETURN {missing}(l, t, owner_);
	END IF;
	IF reply NOT LIKE '{"owner"%' THEN
		PERFORM set_config('synchronous_commit', 'off', true);
	END IF;
	RETURN reply;
END
{body};

-- Leaves a tombstone for an owner that was undone, or ended by force, and returns the lock's row.
CREATE OR REPLACE FUNCTION {bury}(key_ bytea, owner_ text, forced_ boolean, until_ timestamptz) RETURNS {locks}
LANGUAGE sql VOLATILE AS {body}
	INSERT INTO {tombstones} AS old (key, owner, forced, expires) VALUES (key_, owner_, forced_, until_)
	ON CONFLICT (key, owner) DO UPDATE
	SET forced = old.forced OR excluded.forced, expires = greatest(old.expires, excluded.expires);
	UPDATE {locks} SET crowd = true WHERE key = key_ RETURNING *;
{body};

-- Takes back whatever an owner has: a grant, a place in line. It leaves a tombstone, for life_,
-- which refuses a request of that owner that this undo has overtaken.
CREATE OR REPLACE FUNCTION {undo}(key_ bytea, owner_ text, life_ interval, tell_ boolean) RETURNS text
LANGUAGE plpgsql VOLATILE AS {body}
DECLARE
	l {locks} := {open}(key_, true);
	t timestamptz := clock_timestamp();
BEGIN
	DELETE FROM {readers} WHERE key = key_ AND owner = owner_;
	DELETE FROM {waiters} WHERE key = key_ AND owner = owner_;
	IF FOUND THEN
		UPDATE {locks} SET line = line - 1 WHERE key = key_;
	END IF;
	l := {bury}(key_, owner_, false, t + life_);
	IF l.owner IS NULL OR l.owner = owner_ OR l.expires <= t THEN
		PERFORM {pass}(l, t, NULL, tell_);
	END IF;
	-- Some tombstones that are over, of keys which nobody uses any more.
	DELETE FROM {tombstones} WHERE ctid = ANY (ARRAY(
		SELECT ctid FROM {tombstones} WHERE expires <= t LIMIT 10 FOR UPDATE SKIP LOCKED));
	RETURN '1';
END
{body};

-- Ends the grant of one owner by force, and tells its process; for life_, and for its TTL up to a
-- day, it is known why it ended. Returns '1', or '0' when that owner has no grant.
CREATE OR REPLACE FUNCTION {force}(key_ bytea, owner_ text, life_ interval, tell_ boolean) RETURNS text
LANGUAGE plpgsql VOLATILE AS {body}
DECLARE
	l {locks} := {open}(key_, false);
	t timestamptz := clock_timestamp();
	told text := l.process;
	until timestamptz := l.expires;
BEGIN
	IF l.owner IS DISTINCT FROM owner_ OR until <= t THEN
		DELETE FROM {readers} WHERE key = key_ AND owner = owner_ AND l.key IS NOT NULL AND expires > t
		RETURNING process, expires INTO told, until;
		IF NOT FOUND THEN RETURN '0'; END IF;
	END IF;
	l := {bury}(key_, owner_, true, greatest(t + life_, least(until, t + interval '1 day')));
	IF told IS NOT NULL AND tell_ THEN
		PERFORM {notify}(told, 'forced ' || owner_);
	END IF;
	IF l.owner = owner_ OR NOT EXISTS (SELECT FROM {readers} WHERE key = key_ AND expires > t) THEN
		PERFORM {pass}(l, t, NULL, tell_);
	END IF;
	RETURN '1';
END
{body};

-- Looks at up to some_ rows of locks whose keys come after after_, and deletes those that
-- nobody holds or waits for and that were not granted for as long as idle_. Returns {"deleted",
-- "last": the last key in hex}.
CREATE OR REPLACE FUNCTION {prune}(after_ bytea, idle_ interval, some_ int) RETURNS text
LANGUAGE plpgsql VOLATILE AS {body}
DECLARE
	l {locks};
	k bytea;
	last bytea;
	n int := 0;
BEGIN
	FOR k IN SELECT key FROM {locks} WHERE key > after_ ORDER BY key LIMIT some_ LOOP
		last := k;
		SELECT * INTO l FROM {locks} WHERE key = k AND (owner IS NULL OR expires <= clock_timestamp())
			AND token <= (date_part('epoch', clock_timestamp() - idle_) * 1000000::float8)::bigint FOR UPDATE SKIP LOCKED;
		IF FOUND AND l.crowd THEN
			l := {sweep}(k);
		END IF;
		IF FOUND AND NOT l.crowd THEN
			DELETE FROM {locks} WHERE key = k;
			n := n + 1;
		END IF;
	END LOOP;
	RETURN pg_catalog.json_build_object('deleted', n, 'last', encode(last, 'hex'));
END
{body};

COMMENT ON TABLE {locks} IS 'lock/postgres {version}';
