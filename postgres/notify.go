package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// channelPrefix is what channels begin with; schema.sql has it too.
const channelPrefix = "lock_"

// dialLimit is how long it may take until a connection listens.
const dialLimit = 5 * time.Second

// subscribe is the life of the connection on which this Locker hears of releases and forced
// losses. It is not the pool's. See storekit.Listener.
func (l *Locker) subscribe(ctx context.Context, subscribed func(), heard func(string)) error {
	conn, err := l.dial(ctx)
	if err != nil {
		return l.db.explain(err)
	}
	defer func() {
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWait/2)
		defer cancel()
		_ = conn.Close(bye)
	}()
	subscribed()
	for {
		note, err := conn.WaitForNotification(ctx)
		if err != nil {
			return l.db.explain(err)
		}
		heard(note.Payload)
	}
}

// dial returns a connection that listens: as the pool connects now, unless told.
func (l *Locker) dial(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	p := l.db.pool.Config()
	config := p.ConnConfig
	if l.listen != nil {
		config = l.listen.Copy()
	} else if p.BeforeConnect != nil { // it may bring the password
		if err := p.BeforeConnect(ctx, config); err != nil {
			return nil, err
		}
	}
	config.OnNotification = nil // it would take them from WaitForNotification
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	if _, err = conn.Exec(ctx, "LISTEN "+pgx.Identifier{channelPrefix + l.process}.Sanitize()); err != nil {
		_ = conn.Close(ctx)
	}
	return conn, err
}

// probe sends a message to this Locker, by the pool, as a release does.
func (l *Locker) probe(ctx context.Context, payload string) error {
	_, _, err := l.db.text(ctx, l.sql.notify, l.process, payload)
	return err
}
