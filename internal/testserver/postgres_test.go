package testserver

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestPostgresKeepsWhatItCommitted(t *testing.T) {
	s := Postgres(t)
	needControl(t, s)
	query := func(sql string) string {
		t.Helper()
		value, err := s.postgresQuery(sql)
		require.NoError(t, err)
		return value
	}
	query("CREATE TABLE IF NOT EXISTS kept (n int); INSERT INTO kept VALUES (7) RETURNING n")
	for _, end := range []func(){s.Kill, s.Stop} {
		end()
		require.Error(t, postgresReady(t.Context(), s.addr))
		s.Start()
		assert.Equal(t, "7", query("SELECT n FROM kept"))
	}
	s.Pause()
	require.Error(t, postgresReady(t.Context(), s.addr))
	s.Resume()
	assert.Equal(t, "on", query("SHOW fsync"))
}

func TestPgBouncerPassesOn(t *testing.T) {
	s := SharedPostgres(t)
	b := PgBouncer(t, s)
	value, err := postgresQuery(t.Context(), b.addr, "SELECT inet_server_port()")
	require.NoError(t, err)
	_, port := s.hostPort()
	assert.Equal(t, port, value)
}

func TestPostgresPairFailsOver(t *testing.T) {
	p := NewPostgresPair(t)
	_, err := p.Primary.postgresQuery("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7) RETURNING n")
	require.NoError(t, err)
	p.CatchUp()
	_, err = p.Standby.postgresQuery("INSERT INTO kept VALUES (8) RETURNING n")
	require.ErrorContains(t, err, "25006")
	p.Primary.Kill()
	p.Promote()
	value, err := p.Standby.postgresQuery("INSERT INTO kept VALUES (8) RETURNING (SELECT n FROM kept)")
	require.NoError(t, err)
	assert.Equal(t, "7", value)
}
