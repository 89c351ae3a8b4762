package otellock

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/seed-215fdefa/lock"
)

// TestAlerts has Prometheus' own tool try the alerts.
func TestAlerts(t *testing.T) {
	promtool(t, "test", "rules", "alerts_test.yaml")
	rules, err := os.ReadFile("alerts.yaml")
	require.NoError(t, err)
	assert.Contains(t, string(rules), fmt.Sprintf("< %v\n", lock.DefaultTTL.Seconds()/3), "slack that is too little")
	known := names(t)
	for _, name := range regexp.MustCompile(`\block_[a-z_]+\b`).FindAllString(string(rules), -1) {
		assert.Contains(t, known, name)
	}
}

// dashboard is what the dashboard uses of Grafana's schema.
type dashboard struct {
	Title         string
	UID           string
	Tags          []string
	SchemaVersion int
	Timezone      string
	Refresh       string
	Time          struct{ From, To string }
	Templating    struct {
		List []struct {
			Name, Type, Label, Query string
			Datasource               *source
			Refresh                  int
			IncludeAll, Multi        bool
			Current                  struct{ Text, Value string }
		}
	}
	Panels []struct {
		ID                       int
		Type, Title, Description string
		Datasource               source
		GridPos                  struct{ H, W, X, Y int }
		FieldConfig              struct {
			Defaults struct {
				Unit string
				Min  int
			}
			Overrides []any
		}
		Targets []struct{ Expr, LegendFormat, RefID string }
	}
}

type source struct{ Type, UID string }

// TestDashboard has Prometheus' own tool read its queries, whose names must be ours.
func TestDashboard(t *testing.T) {
	data, err := os.ReadFile("dashboard.json")
	require.NoError(t, err)
	var d dashboard
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	require.NoError(t, dec.Decode(&d))

	known, shown := names(t), ""
	var rules strings.Builder
	rules.WriteString("groups:\n- name: queries\n  rules:\n")
	for _, p := range d.Panels {
		require.NotEmpty(t, p.Targets, p.Title)
		for _, q := range p.Targets {
			expr := strings.ReplaceAll(q.Expr, "$__rate_interval", "5m")
			fmt.Fprintf(&rules, "  - {record: q%d%s, expr: %q}\n", p.ID, q.RefID, expr)
			for _, name := range regexp.MustCompile(`\block_[a-z_]+\b`).FindAllString(q.Expr+q.LegendFormat, -1) {
				assert.Contains(t, known, name, p.Title)
				shown += name + " "
			}
		}
	}
	for name, instrument := range known {
		if instrument != "" && !strings.HasSuffix(name, "_count") && !strings.HasSuffix(name, "_sum") {
			assert.Contains(t, shown, name, "the dashboard shows all that is measured")
		}
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	require.NoError(t, os.WriteFile(file, []byte(rules.String()), 0o600))
	promtool(t, "check", "rules", file)
}

// promtool comes with Prometheus.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "promtool", args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// names are those that Prometheus has for the instruments and attributes, as the exporter's
// rules make them: the name, its unit, _total behind a counter. Attributes have no instrument.
func names(t *testing.T) map[string]string {
	t.Helper()
	reader := metric.NewManualReader()
	o := New(WithMeterProvider(metric.NewMeterProvider(metric.WithReader(reader))))
	lost := lock.LostError{Reason: lock.ReasonForced}
	for _, e := range []lock.Event{
		{Kind: lock.EventContended},
		{Kind: lock.EventGranted},
		{Kind: lock.EventRenewed},
		{Kind: lock.EventRenewFailed},
		{Kind: lock.EventReleased},
		{Kind: lock.EventLost, Err: &lost},
	} {
		o.Observe(context.Background(), e)
	}
	var all metricdata.ResourceMetrics
	require.NoError(t, reader.Collect(context.Background(), &all))
	known := map[string]string{}
	under := strings.NewReplacer(".", "_")
	for _, m := range all.ScopeMetrics[0].Metrics {
		name := under.Replace(m.Name)
		switch d := m.Data.(type) {
		case metricdata.Histogram[float64]:
			for _, suffix := range []string{"_bucket", "_count", "_sum"} {
				known[name+"_seconds"+suffix] = m.Name
			}
			for kv := d.DataPoints[0].Attributes.Iter(); kv.Next(); {
				known[under.Replace(string(kv.Attribute().Key))] = ""
			}
		case metricdata.Sum[int64]:
			if d.IsMonotonic {
				name += "_total"
			}
			known[name] = m.Name
			for _, p := range d.DataPoints {
				for kv := p.Attributes.Iter(); kv.Next(); {
					known[under.Replace(string(kv.Attribute().Key))] = ""
				}
			}
		}
	}
	return known
}
