-- The tables and functions of one set of locks. Names in braces are put in, quoted. Functions
-- carry a version in their names, so that programs of two versions can work side by side.
--
-- How a grant is decided. Under READ COMMITTED a statement that has waited for a row sees
-- that row's newest version, but everything else as it was before the wait. So a statement
-- that decides alone looks at the lock's own row and nothing else (crowd says that there is
-- more to see), and whatever looks further locks that row first and reads on in new
-- statements, as a VOLATILE plpgsql function does. All writers of a key lock its row, so
-- what they have read stays true until they commit; but for a waiter that keeps its place,
-- which changes nothing for others. Times are clock_timestamp(), read when the row is locked:
-- now() would be from before the wait.

CREATE TABLE IF NOT EXISTS {locks} (
	key      bytea PRIMARY KEY,
	token    bigint NOT NULL,               -- the highest granted; 0 if none was
	owner    text,                          -- of the exclusive grant; null if there is none
	expires  timestamptz,
	process  text,                          -- the owner's, if it can be notified
	metadata text,                          -- JSON, or null
	crowd    boolean NOT NULL DEFAULT false -- whether the next three tables may have rows
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

CREATE TABLE IF NOT EXISTS {readers} (
	key      bytea NOT NULL,
	owner    text NOT NULL,
	token    bigint NOT NULL,
	expires  timestamptz NOT NULL,
	process  text,
	metadata text,
	PRIMARY KEY (key, owner)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- The line. A place lives until its deadline, which its waiter's heartbeats put off. A live
-- place is a reservation: nobody behind it, and nobody new, is granted the lock.
CREATE TABLE IF NOT EXISTS {waiters} (
	key      bytea NOT NULL,
	owner    text NOT NULL,
	ticket   bigint GENERATED ALWAYS AS IDENTITY, -- drawn while the lock's row is locked
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

-- Owners whose acquisition was undone: a late request of theirs is refused. And those whose
-- grant was ended by force, so that they are told why.
CREATE TABLE IF NOT EXISTS {undone} (
	key     bytea NOT NULL,
	owner   text NOT NULL,
	forced  boolean NOT NULL,
	expires timestamptz NOT NULL,
	PRIMARY KEY (key, owner)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
CREATE INDEX IF NOT EXISTS {undone_expires} ON {undone} (expires);

-- The fences: the newest token that a resource has seen. They are locked for as long as a
-- user's transaction takes, so nothing above ever waits for them, and they never expire.
CREATE TABLE IF NOT EXISTS {marks} (
	key   bytea PRIMARY KEY,
	token bigint NOT NULL
) WITH (fillfactor = 50);

-- A new token: the time in µs, but always greater than the last.
CREATE OR REPLACE FUNCTION {mint}(last_ bigint) RETURNS bigint
LANGUAGE sql VOLATILE AS {body}
	SELECT greatest(last_ + 1, (date_part('epoch', clock_timestamp()) * 1000000)::bigint)
{body};

-- Undoes a statement that was slow between the clock, which is the token of a new row, and
-- the row. The caller sends it again.
CREATE OR REPLACE FUNCTION {late}() RETURNS text
LANGUAGE plpgsql VOLATILE AS {body}
BEGIN
	RAISE serialization_failure USING MESSAGE = 'lock: a token was drawn too long ago';
END
{body};

CREATE OR REPLACE FUNCTION {micros}(span_ interval) RETURNS bigint
LANGUAGE sql IMMUTABLE AS {body}
	SELECT (date_part('epoch', span_) * 1000000)::bigint
{body};

-- What reads beyond the lock's row is sound under READ COMMITTED only: a snapshot from
-- before the row's lock shows the line and the readers of then. Elsewhere the caller is
-- told to send it again in a transaction of that level. A standby, which may be behind, is
-- not asked even who holds a lock. And a grant is on disk when it is acknowledged, whatever
-- the default of the database.
CREATE OR REPLACE FUNCTION {check}() RETURNS void
LANGUAGE plpgsql VOLATILE AS {body}
BEGIN
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		RAISE EXCEPTION 'lock: must run under READ COMMITTED' USING ERRCODE = 'LK001';
	END IF;
	IF current_setting('transaction_read_only') = 'on' THEN
		RAISE read_only_sql_transaction USING MESSAGE = 'lock: must not be read-only';
	END IF;
	IF current_setting('synchronous_commit') = 'off' THEN
		PERFORM set_config('synchronous_commit', 'local', true);
	END IF;
END
{body};

-- Forgets what has expired beside the lock's row.
CREATE OR REPLACE FUNCTION {expire}(key_ bytea, now_ timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE AS {body}
BEGIN
	DELETE FROM {readers} WHERE key = key_ AND expires <= now_;
	DELETE FROM {waiters} WHERE key = key_ AND deadline <= now_;
	DELETE FROM {undone} WHERE key = key_ AND expires <= now_;
END
{body};

-- Whether anything of the key is beside its row.
CREATE OR REPLACE FUNCTION {crowded}(key_ bytea) RETURNS boolean
LANGUAGE sql VOLATILE AS {body}
	SELECT EXISTS (SELECT FROM {waiters} WHERE key = key_)
		OR EXISTS (SELECT FROM {readers} WHERE key = key_)
		OR EXISTS (SELECT FROM {undone} WHERE key = key_)
{body};

-- The live grants of a key as JSON, some at most. STABLE: it sees what its caller sees.
CREATE OR REPLACE FUNCTION {holders}(lock_ {locks}, now_ timestamptz, some_ int) RETURNS json
LANGUAGE sql STABLE AS {body}
	SELECT json_agg(json_build_object('o', h.owner, 't', h.token, 's', h.shared,
		'l', {micros}(h.expires - now_),
		'h', (date_part('epoch', now_) * 1000000)::bigint - h.token, 'm', h.metadata))
	FROM (
		SELECT lock_.owner, lock_.token, lock_.expires, lock_.metadata, false AS shared
		WHERE lock_.owner IS NOT NULL AND lock_.expires > now_
		UNION ALL
		(SELECT owner, token, expires, metadata, true FROM {readers}
		WHERE lock_.crowd AND key = lock_.key AND expires > now_ ORDER BY token LIMIT some_)
	) h
{body};

-- The live waiters of a key as JSON, those before one's ticket if that is not null.
CREATE OR REPLACE FUNCTION {line}(key_ bytea, now_ timestamptz, before_ bigint) RETURNS json
LANGUAGE sql STABLE AS {body}
	SELECT json_agg(json_build_object('o', owner, 's', shared, 'm', metadata,
		'w', {micros}(now_ - arrived)) ORDER BY ticket)
	FROM {waiters}
	WHERE key = key_ AND deadline > now_ AND (before_ IS NULL OR ticket < before_)
{body};

-- Passes a lock on that has no exclusive holder any more. Its row is locked; lock_ is what
-- the row was, which this writes anew. A next waiter from process near_, whose call this
-- is, is granted the lock at once: the reply is its proof, for which the process took the
-- start before it asked. Readers from there are named in the reply, to be woken. Any other
-- waiter is notified, and claims by its own acquire; NOTIFY makes commits of the whole
-- server wait for each other, so there is none when nobody waits elsewhere.
--
-- Returns '1', or {"owner", "token"} of who has the lock now, or {"wake": owners}.
CREATE OR REPLACE FUNCTION {pass}(lock_ {locks}, now_ timestamptz, near_ text) RETURNS text
LANGUAGE plpgsql VOLATILE AS {body}
DECLARE
	w {waiters};
	other {waiters};
	minted bigint;
	names text[];
BEGIN
	IF lock_.crowd THEN
		PERFORM {expire}(lock_.key, now_);
		SELECT * INTO w FROM {waiters} WHERE key = lock_.key ORDER BY ticket LIMIT 1;
	END IF;
	IF w.owner IS NULL THEN
		UPDATE {locks} SET owner = NULL, crowd = lock_.crowd AND {crowded}(lock_.key)
		WHERE key = lock_.key;
		RETURN '1';
	END IF;

	IF NOT w.shared AND EXISTS (SELECT FROM {readers} WHERE key = lock_.key) THEN
		UPDATE {locks} SET owner = NULL WHERE key = lock_.key;
		RETURN '1';
	END IF;
	IF NOT w.shared AND w.process = near_ THEN
		DELETE FROM {waiters} WHERE key = w.key AND owner = w.owner;
		UPDATE {locks} SET token = {mint}(token), owner = w.owner, expires = now_ + w.ttl,
			process = CASE WHEN w.listens THEN w.process END, metadata = w.metadata,
			crowd = {crowded}(w.key)
		WHERE key = w.key RETURNING token INTO minted;
		RETURN json_build_object('owner', w.owner, 'token', minted);
	END IF;

	UPDATE {locks} SET owner = NULL WHERE key = lock_.key;
	FOR other IN
		SELECT * FROM {waiters} WHERE key = w.key AND (ticket = w.ticket OR w.shared AND ticket <
			(SELECT coalesce(min(ticket), 9223372036854775807) FROM {waiters} WHERE key = w.key AND NOT shared))
	LOOP
		IF other.process = near_ THEN
			names := names || other.owner;
		ELSIF other.listens THEN
			PERFORM pg_notify('lock_' || other.process, 'wake ' || other.owner);
		END IF;
	END LOOP;
	RETURN CASE WHEN names IS NULL THEN '1' ELSE json_build_object('wake', names)::text END;
END
{body};

-- Locks the row of a key, which it makes if there is none, and returns it.
CREATE OR REPLACE FUNCTION {grab}(key_ bytea) RETURNS {locks}
LANGUAGE plpgsql VOLATILE AS {body}
DECLARE l {locks};
BEGIN
	LOOP
		SELECT * INTO l FROM {locks} WHERE key = key_ FOR UPDATE;
		IF FOUND THEN RETURN l; END IF;
		INSERT INTO {locks} (key, token) VALUES (key_, 0) ON CONFLICT DO NOTHING;
	END LOOP;
END
{body};

-- Acquires a lock, or stands in line for it if beat_, the heartbeat, is not null. line_ asks
-- for those in front too.
--
-- Returns the token in digits, or
--   {"undone": true} when an undo of this owner has overtaken this request; or
--   {"recheck": µs until nothing known is in the way, "ahead": waiters in the way,
--    "holders": [...], "line": [...]}.
CREATE OR REPLACE FUNCTION {acquire}(key_ bytea, owner_ text, ttl_ interval, shared_ boolean,
	process_ text, listens_ boolean, metadata_ text, beat_ interval, line_ boolean) RETURNS text
LANGUAGE plpgsql VOLATILE AS {body}
DECLARE
	l {locks};
	t timestamptz;
	live boolean;
	until timestamptz; -- the last moment at which what is in the way ends by itself
	place bigint;
	ahead bigint := 0;
	minted bigint;
	line json;
BEGIN
	PERFORM {check}();
	IF beat_ IS NULL THEN -- what is seen to be held is refused without a lock or a write
		t := clock_timestamp();
		SELECT * INTO l FROM {locks} WHERE key = key_ AND owner <> owner_ AND expires > t;
		IF FOUND THEN
			RETURN json_build_object('recheck', {micros}(l.expires - t), 'ahead', 0,
				'holders', {holders}(l, t, 16));
		END IF;
	END IF;

	l := {grab}(key_);
	t := clock_timestamp();
	IF l.crowd THEN
		PERFORM {expire}(key_, t);
		IF EXISTS (SELECT FROM {undone} WHERE key = key_ AND owner = owner_) THEN
			RETURN '{"undone": true}';
		END IF;
	END IF;

	-- This request may have been sent again after an unknown outcome: one owner, one grant. It
	-- may be the first copy that comes late, so what a renewal has put off stays put off.
	live := l.owner IS NOT NULL AND l.expires > t;
	IF live AND l.owner = owner_ THEN
		UPDATE {locks} SET expires = greatest(expires, t + ttl_) WHERE key = key_;
		RETURN l.token;
	END IF;
	IF shared_ AND l.crowd THEN
		UPDATE {readers} SET expires = greatest(expires, t + ttl_)
		WHERE key = key_ AND owner = owner_ RETURNING token INTO minted;
		IF FOUND THEN RETURN minted; END IF;
	END IF;

	-- In the way of a reader: the writer, and writers in front of it. Of a writer: anybody.
	IF live THEN until := l.expires; END IF;
	IF l.crowd THEN
		SELECT ticket INTO place FROM {waiters} WHERE key = key_ AND owner = owner_;
		SELECT count(*), greatest(until, max(deadline)) INTO ahead, until FROM {waiters}
		WHERE key = key_ AND (place IS NULL OR ticket < place) AND NOT (shared_ AND shared);
		IF NOT shared_ THEN
			SELECT greatest(until, max(expires)) INTO until FROM {readers} WHERE key = key_;
		END IF;
	END IF;

	IF until IS NULL THEN
		IF place IS NOT NULL THEN
			DELETE FROM {waiters} WHERE key = key_ AND owner = owner_;
		END IF;
		IF shared_ THEN
			UPDATE {locks} SET token = {mint}(token), owner = NULL, crowd = true
			WHERE key = key_ RETURNING token INTO minted;
			INSERT INTO {readers} (key, owner, token, expires, process, metadata)
			VALUES (key_, owner_, minted, t + ttl_, CASE WHEN listens_ THEN process_ END, metadata_);
		ELSE
			UPDATE {locks} SET token = {mint}(token), owner = owner_, expires = t + ttl_,
				process = CASE WHEN listens_ THEN process_ END, metadata = metadata_,
				crowd = l.crowd AND {crowded}(key_)
			WHERE key = key_ RETURNING token INTO minted;
		END IF;
		RETURN minted;
	END IF;

	IF line_ THEN
		line := {line}(key_, t, place);
	END IF;
	IF place IS NOT NULL THEN
		UPDATE {waiters} SET deadline = t + beat_ WHERE key = key_ AND owner = owner_;
	ELSIF beat_ IS NOT NULL THEN
		INSERT INTO {waiters} (key, owner, shared, ttl, arrived, deadline, process, listens, metadata)
		VALUES (key_, owner_, shared_, ttl_, t, t + beat_, process_, listens_, metadata_);
		IF NOT l.crowd THEN
			UPDATE {locks} SET crowd = true WHERE key = key_;
		END IF;
	END IF;
	-- Nothing that a crash may not take: the waiter lines up again at its next heartbeat.
	PERFORM set_config('synchronous_commit', 'off', true);
	RETURN json_build_object('recheck', {micros}(until - t), 'ahead', ahead,
		'holders', {holders}(l, t, 16), 'line', line);
END
{body};

-- Why an owner's grant is not there: '3' when it was ended by force, '2' when somebody else
-- has the lock, else '0'.
CREATE OR REPLACE FUNCTION {missing}(lock_ {locks}, now_ timestamptz, owner_ text) RETURNS text
LANGUAGE sql STABLE AS {body}
	SELECT CASE
		WHEN lock_.crowd AND EXISTS (SELECT FROM {undone} WHERE key = lock_.key AND owner = owner_ AND forced) THEN '3'
		WHEN lock_.owner IS NOT NULL AND lock_.expires > now_ THEN '2'
		WHEN lock_.crowd AND EXISTS (SELECT FROM {readers} WHERE key = lock_.key AND expires > now_) THEN '2'
		ELSE '0' END
{body};

-- Restarts the TTL of a grant. It never creates one. Returns '1', or what missing says.
CREATE OR REPLACE FUNCTION {renew}(key_ bytea, owner_ text, token_ bigint, shared_ boolean, ttl_ interval) RETURNS text
LANGUAGE plpgsql VOLATILE AS {body}
DECLARE
	l {locks};
	t timestamptz;
BEGIN
	PERFORM {check}();
	SELECT * INTO l FROM {locks} WHERE key = key_ FOR UPDATE;
	t := clock_timestamp();
	IF NOT FOUND THEN
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
CREATE OR REPLACE FUNCTION {release}(key_ bytea, owner_ text, token_ bigint, shared_ boolean, near_ text) RETURNS text
LANGUAGE plpgsql VOLATILE AS {body}
DECLARE
	l {locks};
	t timestamptz;
	reply text;
BEGIN
	PERFORM {check}();
	SELECT * INTO l FROM {locks} WHERE key = key_ FOR UPDATE;
	t := clock_timestamp();
	IF NOT FOUND THEN
		RETURN '0';
	ELSIF shared_ THEN
		DELETE FROM {readers} WHERE key = key_ AND owner = owner_ AND token = token_ AND expires > t;
		IF NOT FOUND THEN RETURN {missing}(l, t, owner_); END IF;
		IF EXISTS (SELECT FROM {readers} WHERE key = key_ AND expires > t) THEN RETURN '1'; END IF;
	ELSIF l.owner IS DISTINCT FROM owner_ OR l.token <> token_ OR l.expires <= t THEN
		RETURN {missing}(l, t, owner_);
	END IF;
	reply := {pass}(l, t, near_);
	IF reply NOT LIKE '{"owner"%' THEN
		PERFORM set_config('synchronous_commit', 'off', true);
	END IF;
	RETURN reply;
END
{body};

-- Remembers that an owner was undone, or ended by force, until then.
CREATE OR REPLACE FUNCTION {mark}(key_ bytea, owner_ text, forced_ boolean, until_ timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE AS {body}
BEGIN
	INSERT INTO {undone} (key, owner, forced, expires) VALUES (key_, owner_, forced_, until_)
	ON CONFLICT (key, owner) DO UPDATE SET expires = excluded.expires;
	UPDATE {locks} SET crowd = true WHERE key = key_;
END
{body};

-- Takes back whatever an owner has: a grant, a place in line. It leaves a mark, for life_,
-- which refuses a request of that owner that this undo has overtaken.
CREATE OR REPLACE FUNCTION {undo}(key_ bytea, owner_ text, life_ interval) RETURNS text
LANGUAGE plpgsql VOLATILE AS {body}
DECLARE
	l {locks};
	t timestamptz;
BEGIN
	PERFORM {check}();
	l := {grab}(key_);
	t := clock_timestamp();
	DELETE FROM {readers} WHERE key = key_ AND owner = owner_;
	DELETE FROM {waiters} WHERE key = key_ AND owner = owner_;
	PERFORM {mark}(key_, owner_, false, t + life_);
	l.crowd := true;
	IF l.owner IS NULL OR l.owner = owner_ OR l.expires <= t THEN
		PERFORM {pass}(l, t, NULL);
	END IF;
	-- Some marks of others that are over: those of keys which nobody uses any more.
	DELETE FROM {undone} WHERE ctid = ANY (ARRAY(
		SELECT ctid FROM {undone} WHERE expires <= t LIMIT 10 FOR UPDATE SKIP LOCKED));
	RETURN '1';
END
{body};

-- Ends the grant of one owner by force, and tells its process; for life_ it is known why it
-- ended. Returns '1', or '0' when that owner has no grant.
CREATE OR REPLACE FUNCTION {force}(key_ bytea, owner_ text, life_ interval) RETURNS text
LANGUAGE plpgsql VOLATILE AS {body}
DECLARE
	l {locks};
	t timestamptz;
	told text;
BEGIN
	PERFORM {check}();
	SELECT * INTO l FROM {locks} WHERE key = key_ FOR UPDATE;
	t := clock_timestamp();
	IF l.owner = owner_ AND l.expires > t THEN
		told := l.process;
	ELSE
		DELETE FROM {readers} WHERE key = key_ AND owner = owner_ AND expires > t RETURNING process INTO told;
		IF NOT FOUND THEN RETURN '0'; END IF;
	END IF;
	PERFORM {mark}(key_, owner_, true, t + life_);
	l.crowd := true;
	IF told IS NOT NULL THEN
		PERFORM pg_notify('lock_' || told, 'forced ' || owner_);
	END IF;
	IF l.owner = owner_ OR NOT EXISTS (SELECT FROM {readers} WHERE key = key_ AND expires > t) THEN
		PERFORM {pass}(l, t, NULL);
	END IF;
	RETURN '1';
END
{body};

-- Deletes up to some_ rows of locks that nobody holds or waits for and that were not granted
-- for as long as idle_, a second at least: see the function late. Returns how many, in digits.
CREATE OR REPLACE FUNCTION {prune}(idle_ interval, some_ int) RETURNS text
LANGUAGE plpgsql VOLATILE AS {body}
DECLARE
	idle bytea[];
	k bytea;
	n bigint;
BEGIN
	PERFORM {check}();
	idle := ARRAY(SELECT key FROM {locks}
		WHERE token <= (date_part('epoch', clock_timestamp() - greatest(idle_, '1 s')) * 1000000)::bigint
			AND (owner IS NULL OR expires <= clock_timestamp())
			AND (NOT crowd OR NOT EXISTS (SELECT FROM {undone} u WHERE u.key = {locks}.key AND u.expires > clock_timestamp()))
		LIMIT some_ FOR UPDATE SKIP LOCKED);
	FOREACH k IN ARRAY idle LOOP
		PERFORM {expire}(k, clock_timestamp());
	END LOOP;
	DELETE FROM {locks} WHERE key = ANY (idle) AND NOT {crowded}(key);
	GET DIAGNOSTICS n = ROW_COUNT;
	RETURN n;
END
{body};

COMMENT ON FUNCTION {acquire} IS '{digest}';
