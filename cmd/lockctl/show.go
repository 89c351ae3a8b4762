package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/seed-215fdefa/lock"
)

func (a *app) ls(args []string) (int, error) {
	f := a.flags("ls")
	asJSON := f.Bool("json", false, "")
	if err := parse(f, args, "[PREFIX]"); err != nil {
		return exitUsage, err
	}
	ctx, stop, _ := interrupted()
	defer stop()
	return a.with(ctx, func(c *lock.Client) (int, error) {
		var records []lock.Record
		for r, err := range c.List(ctx, f.Arg(0)) {
			if err != nil {
				return status(err), err
			}
			records = append(records, r)
		}
		slices.SortFunc(records, func(x, y lock.Record) int { return strings.Compare(x.Key, y.Key) })
		if *asJSON {
			return 0, a.json(records...)
		}
		return 0, table(a.out, records)
	})
}

// table prints a line for each lock, for people.
func table(w io.Writer, records []lock.Record) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "KEY\tMODE\tHOLDER\tTOKEN\tHELD\tEXPIRES\tWAITING\tMETADATA")
	for _, r := range records {
		mode, holder, token, held, expires, metadata := "free", "-", "-", "-", "-", ""
		if len(r.Holders) > 0 {
			h := r.Holders[0]
			mode, holder, token = modeOf(h.Shared), h.Owner, h.Token.String()
			if r.HolderCount > 1 {
				holder += fmt.Sprintf(" and %d more", r.HolderCount-1)
			}
			held, expires, metadata = short(h.Held), short(h.ExpiresIn), meta(h.Metadata)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n",
			printable(r.Key), mode, holder, token, held, expires, r.WaiterCount, metadata)
	}
	return t.Flush()
}

func (a *app) inspect(args []string) (int, error) {
	f := a.flags("inspect")
	asJSON := f.Bool("json", false, "")
	if err := parse(f, args, "KEY"); err != nil {
		return exitUsage, err
	}
	ctx, stop, _ := interrupted()
	defer stop()
	return a.with(ctx, func(c *lock.Client) (int, error) {
		r, err := c.Inspect(ctx, f.Arg(0))
		if err != nil {
			return status(err), err
		}
		if *asJSON {
			return 0, a.json(r)
		}
		return 0, details(a.out, r)
	})
}

func (a *app) watch(args []string) (int, error) {
	f := a.flags("watch")
	asJSON := f.Bool("json", false, "")
	if err := parse(f, args, "KEY"); err != nil {
		return exitUsage, err
	}
	ctx, stop, signal := interrupted()
	defer stop()
	return a.with(ctx, func(c *lock.Client) (int, error) {
		for r, err := range c.Watch(ctx, f.Arg(0)) {
			switch {
			case err != nil && signal() != 0:
				return 0, nil
			case err != nil:
				return status(err), err
			case *asJSON:
				err = a.json(r)
			default:
				fmt.Fprintln(a.out, time.Now().Format(time.TimeOnly))
				err = details(a.out, r)
			}
			if err != nil {
				return exitUnavailable, err
			}
		}
		return 0, nil
	})
}

// details prints one lock, for people.
func details(w io.Writer, r lock.Record) error {
	fmt.Fprintf(w, "key      %s\n", printable(r.Key))
	if r.Token != 0 {
		fmt.Fprintf(w, "token    %v\n", r.Token)
	}
	fmt.Fprintf(w, "holders  %d\n", r.HolderCount)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, h := range r.Holders {
		fmt.Fprintf(t, "  %s\t%s\ttoken %v\theld %s\texpires in %s\t%s\n",
			h.Owner, modeOf(h.Shared), h.Token, short(h.Held), short(h.ExpiresIn), meta(h.Metadata))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "waiters  %d\n", r.WaiterCount)
	for _, x := range r.Waiters {
		fmt.Fprintf(t, "  %s\t%s\twaited %s\t%s\n", x.Owner, modeOf(x.Shared), short(x.Waited), meta(x.Metadata))
	}
	return t.Flush()
}

// Records as JSON: durations in seconds, null where they are not known, and tokens as numbers,
// which are below 2^53 as JSON wants it.
type (
	jsonRecord struct {
		Key         string       `json:"key"`
		Token       lock.Token   `json:"token,omitempty"`
		Holders     []jsonHolder `json:"holders"`
		HolderCount int          `json:"holder_count"`
		Waiters     []jsonWaiter `json:"waiters"`
		WaiterCount int          `json:"waiter_count"`
	}
	jsonHolder struct {
		Owner     string            `json:"owner"`
		Token     lock.Token        `json:"token"`
		Shared    bool              `json:"shared"`
		Held      *float64          `json:"held_seconds"`
		ExpiresIn *float64          `json:"expires_in_seconds"`
		Metadata  map[string]string `json:"metadata,omitempty"`
	}
	jsonWaiter struct {
		Owner    string            `json:"owner"`
		Shared   bool              `json:"shared"`
		Waited   *float64          `json:"waited_seconds"`
		Metadata map[string]string `json:"metadata,omitempty"`
	}
)

func (a *app) json(records ...lock.Record) error {
	e := json.NewEncoder(a.out)
	for _, r := range records {
		j := jsonRecord{
			Key: r.Key, Token: r.Token, HolderCount: r.HolderCount, WaiterCount: r.WaiterCount,
			Holders: []jsonHolder{}, Waiters: []jsonWaiter{},
		}
		for _, h := range r.Holders {
			j.Holders = append(j.Holders, jsonHolder{h.Owner, h.Token, h.Shared, seconds(h.Held), seconds(h.ExpiresIn), h.Metadata})
		}
		for _, x := range r.Waiters {
			j.Waiters = append(j.Waiters, jsonWaiter{x.Owner, x.Shared, seconds(x.Waited), x.Metadata})
		}
		if err := e.Encode(j); err != nil {
			return err
		}
	}
	return nil
}

func seconds(d time.Duration) *float64 {
	if d < 0 {
		return nil
	}
	s := d.Seconds()
	return &s
}

func modeOf(shared bool) string {
	if shared {
		return "shared"
	}
	return "exclusive"
}

func short(d time.Duration) string {
	switch {
	case d < 0:
		return "?"
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

func meta(m map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, printable(k)+"="+printable(m[k]))
	}
	return strings.Join(parts, " ")
}

// printable is s, quoted if a terminal or a table would not show it as it is.
func printable(s string) string {
	if q := strconv.Quote(s); s == "" || q != `"`+s+`"` || strings.ContainsAny(s, " \t") {
		return q
	}
	return s
}

func (a *app) force(args []string) (int, error) {
	f := a.flags("force")
	if err := parse(f, args, "KEY", "OWNER"); err != nil {
		return exitUsage, err
	}
	ctx, stop, _ := interrupted()
	defer stop()
	return a.with(ctx, func(c *lock.Client) (int, error) {
		err := c.ForceRelease(ctx, f.Arg(0), f.Arg(1))
		return status(err), err
	})
}

func (a *app) deadlocks(args []string) (int, error) {
	if err := parse(a.flags("deadlocks"), args); err != nil {
		return exitUsage, err
	}
	ctx, stop, _ := interrupted()
	defer stop()
	s, err := a.open(ctx)
	if err != nil {
		return openStatus(err), err
	}
	defer s.Close()
	admin, ok := lock.As[lock.Admin](s.Locker)
	if !ok {
		return exitUsage, fmt.Errorf("%w: this store cannot list its locks", lock.ErrUnsupported)
	}
	found, err := lock.FindDeadlocks(ctx, admin)
	switch {
	case err != nil:
		return status(err), err
	case len(found) == 0:
		return 0, nil
	}
	for _, d := range found {
		fmt.Fprintln(a.out, d)
	}
	return exitFound, nil
}

func (a *app) migrate(args []string) (int, error) {
	if err := parse(a.flags("migrate"), args); err != nil {
		return exitUsage, err
	}
	ctx, stop, _ := interrupted()
	defer stop()
	s, err := a.open(ctx)
	if err != nil {
		return openStatus(err), err
	}
	defer s.Close()
	if s.Migrate == nil {
		fmt.Fprintln(a.out, "nothing to do: this store needs no tables")
		return 0, nil
	}
	if err := s.Migrate(ctx); err != nil {
		return exitUnavailable, err
	}
	return 0, nil
}
