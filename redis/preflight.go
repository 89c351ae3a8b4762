package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	goredis "github.com/redis/go-redis/v9"
)

// ErrUnfit says that a server's settings would lose locks. [Locker.Preflight] wraps it.
var ErrUnfit = errors.New("lock: redis: unfit server")

// Preflight checks the settings of every master and whether wake-ups arrive. Call it when a
// program starts. It returns every fault it finds, in a Cluster the settings of one unfit master
// only, as one error that is ErrUnfit:
//
//   - a version before 7
//   - an eviction policy that may drop locks or their counters once memory is short
//   - neither snapshots nor an append-only file
//   - a server that is a replica
//   - a message to itself that does not arrive, so that waiters would have to poll
//
// It needs the right to run INFO. Where CONFIG is refused, as by many hosted services, it does
// not notice a missing snapshot schedule.
func (l *Locker) Preflight(ctx context.Context) error {
	if err := l.ready(ctx); err != nil {
		return err
	}
	err, push := l.settings(ctx), l.push(ctx)
	if push == nil {
		return err
	}
	return errors.Join(err, push)
}

// push tells why messages do not arrive.
func (l *Locker) push(ctx context.Context) error {
	channel := l.channels() + l.process + "-preflight"
	ps, err := l.servers.subscribe(ctx, channel)
	if err == nil {
		defer func() { _ = ps.Close() }()
		_, err = ps.ReceiveTimeout(ctx, quiet) // the subscription
	}
	if err == nil {
		_, _, err = l.servers.run(ctx, publishScript.With(l.keys("probe").all()[:1], channel, "preflight"))
	}
	if err == nil {
		_, err = ps.ReceiveTimeout(ctx, quiet)
	}
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%w: wake-ups do not arrive by channels %s*, so waiters poll: %w", ErrUnfit, l.channels(), err)
}

func (l *Locker) settings(ctx context.Context) error {
	return l.eachMaster(ctx, func(ctx context.Context, master goredis.Cmdable) error {
		info, err := master.Info(ctx).Result()
		if err != nil {
			return err
		}
		saves := "unknown"
		if config, err := master.ConfigGet(ctx, "save").Result(); err == nil {
			saves = config["save"]
		}
		return unfit(facts(info), saves)
	})
}

// facts reads the reply of INFO.
func facts(info string) map[string]string {
	f := make(map[string]string)
	for line := range strings.Lines(info) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			f[name] = value
		}
	}
	return f
}

// unfit judges one server. saves is its snapshot schedule.
func unfit(f map[string]string, saves string) error {
	var all []error
	add := func(format string, args ...any) {
		all = append(all, fmt.Errorf("%w: "+format, append([]any{ErrUnfit}, args...)...))
	}
	version := f["redis_version"]
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err != nil || n < 7 {
		add("version %q: needs 7 or newer", version)
	}
	if f["role"] == "slave" {
		add("it is a replica: locks need the master")
	}
	switch policy := f["maxmemory_policy"]; policy {
	case "noeviction", "":
	default:
		if f["maxmemory"] != "0" {
			add("maxmemory-policy %s with maxmemory %s may evict locks: needs noeviction", policy, f["maxmemory"])
		}
	}
	if f["aof_enabled"] == "0" && saves == "" {
		add("neither append-only file nor snapshots: a restart forgets every lock (tokens rise all the same)")
	}
	return errors.Join(all...)
}
