package lock

import (
	"maps"
	"time"
)

// Settings are what a call goes by: what its options say, else those of [New], else the
// defaults.
type Settings struct {
	TTL      time.Duration
	Wait     time.Duration // of WithWait; negative: only ctx ends a wait
	Metadata map[string]string
	Shared   bool
	MinHold  time.Duration
	Drift    time.Duration // with that TTL; a grant of another may have another
}

// Settings returns what a call with opts would go by, or the error it would return for them.
// It does no I/O. It is for packages that build on a Client.
func (c *Client) Settings(opts ...Option) (Settings, error) {
	if err := c.Err(); err != nil {
		return Settings{}, err
	}
	cfg, err := c.with(opts)
	if err != nil {
		return Settings{}, err
	}
	return Settings{
		TTL: cfg.ttl, Wait: cfg.wait, Metadata: maps.Clone(cfg.metadata), Shared: cfg.shared,
		MinHold: cfg.minHold, Drift: cfg.driftOf(cfg.ttl),
	}, nil
}
