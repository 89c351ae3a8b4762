package postgres

// statements are what a Locker sends. Those for a lock that nobody else has or waits for
// decide by its row alone, so they are sound as plain statements under any isolation level,
// and cost the server least.
type statements struct {
	take, retake, drop, extend, keep            string
	acquire, renew, release, undo, force, prune string
	inspect, list                               string
}

func (n names) statements() statements {
	return statements{
		take: n.fill(takeSQL), retake: n.fill(retakeSQL), drop: n.fill(dropSQL), extend: n.fill(extendSQL), keep: n.fill(keepSQL),
		acquire: n.fill(`SELECT {acquire}($1::bytea, $2::text, $3::interval, $4::boolean, $5::text, $6::boolean, $7::text, $8::interval, $9::boolean)`),
		renew:   n.fill(`SELECT {renew}($1::bytea, $2::text, $3::bigint, $4::boolean, $5::interval)`),
		release: n.fill(`SELECT {release}($1::bytea, $2::text, $3::bigint, $4::boolean, $5::text)`),
		undo:    n.fill(`SELECT {undo}($1::bytea, $2::text, $3::interval)`),
		force:   n.fill(`SELECT {force}($1::bytea, $2::text, $3::interval)`),
		prune:   n.fill(`SELECT {prune}($1::interval, $2::int)`),
		inspect: n.fill(viewSQL + `WHERE l.key = $1::bytea`),
		list: n.fill(viewSQL + `WHERE l.key >= $1::bytea AND l.key < $2::bytea
			AND (l.crowd OR l.owner IS NOT NULL AND l.expires > n.t) ORDER BY l.key LIMIT $3::int`),
	}
}

// takeSQL grants a lock that is free and not crowded, and returns the token; else it returns
// no row. ON CONFLICT locks the row and then evaluates the rest on its newest version, the
// clock included: what VALUES has is from before that, and for a new row only. A row may have
// been there in between, with a newer token, and been pruned: not if it took less than a
// second, since prune leaves rows of the last second alone.
const takeSQL = `INSERT INTO {locks} AS l (key, token, owner, expires, process, metadata)
VALUES ($1::bytea, (date_part('epoch', clock_timestamp()) * 1000000)::bigint, $2::text,
	clock_timestamp() + $3::interval, $4::text, $5::text)
ON CONFLICT (key) DO UPDATE SET
	token = greatest(l.token + 1, (date_part('epoch', clock_timestamp()) * 1000000)::bigint),
	owner = excluded.owner, expires = clock_timestamp() + $3::interval,
	process = excluded.process, metadata = excluded.metadata
WHERE NOT l.crowd AND (l.owner IS NULL OR l.expires <= clock_timestamp())
RETURNING token::text, ` + flushedSQL + `, CASE
	WHEN token < (date_part('epoch', clock_timestamp()) * 1000000)::bigint - 1000000 THEN {late}() END`

// retakeSQL is takeSQL for a row that is known to be there, which costs the server less. It
// returns no row if that has been pruned. After a wait for a row that was changed meanwhile
// all is evaluated again. For one that was not, the clock is from before the wait; but not
// from before the request was sent, where the holder's TTL begins.
const retakeSQL = `UPDATE {locks} SET
	token = greatest(token + 1, (date_part('epoch', clock_timestamp()) * 1000000)::bigint),
	owner = $2::text, expires = clock_timestamp() + $3::interval, process = $4::text, metadata = $5::text
WHERE key = $1::bytea AND NOT crowd AND (owner IS NULL OR expires <= clock_timestamp())
RETURNING token::text, ` + flushedSQL

// flushedSQL has what is granted on disk when it is acknowledged, whatever the default.
const flushedSQL = `CASE WHEN current_setting('synchronous_commit') = 'off'
	THEN set_config('synchronous_commit', 'local', true) END`

// dropSQL ends an exclusive grant of a lock that nobody waits for. It affects no row if there
// is more to do, or nothing to drop. It does not wait for the disk: see the package comment.
const dropSQL = `UPDATE {locks} SET owner = NULL
WHERE key = $1::bytea AND owner = $2::text AND token = $3::bigint AND expires > clock_timestamp() AND NOT crowd
	AND set_config('synchronous_commit', 'off', true) IS NOT NULL`

// extendSQL renews an exclusive grant. It affects no row if that is not there.
const extendSQL = `UPDATE {locks} SET expires = clock_timestamp() + $4::interval
WHERE key = $1::bytea AND owner = $2::text AND token = $3::bigint AND expires > clock_timestamp()
RETURNING ` + flushedSQL

// behind is what keepSQL returns while somebody alive is in the way in front.
const behind = "behind"

// keepSQL puts off the deadline of a place in line. It returns no row if that is not there any
// more. It does not lock the lock's row: who removes dead places looks again at one that is
// being kept, so it ends up kept or removed; and what it returns is only a hint.
const keepSQL = `UPDATE {waiters} w SET deadline = clock_timestamp() + $3::interval
WHERE w.key = $1::bytea AND w.owner = $2::text AND w.deadline > clock_timestamp()
RETURNING CASE WHEN EXISTS (SELECT FROM {waiters} o WHERE o.key = w.key AND o.ticket < w.ticket
	AND o.deadline > clock_timestamp() AND NOT (w.shared AND o.shared)) THEN '` + behind + `' ELSE 'first' END,
	set_config('synchronous_commit', 'off', true)`

// viewSQL reads records, each in one snapshot.
const viewSQL = `SELECT l.key, l.token, {holders}(l, n.t, NULL)::text, {line}(l.key, n.t, NULL)::text
FROM {locks} l, (SELECT clock_timestamp() AS t) n
`
