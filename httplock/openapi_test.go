package httplock_test

import (
	"encoding/json"
	"mime"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// operation is what the document says of a method of a path.
type operation struct {
	RequestBody struct {
		Content map[string]struct {
			Schema struct {
				Ref string `json:"$ref"`
			}
		}
	}
	Responses map[string]struct {
		Description string
		Content     map[string]any
	}
}

// openAPI is what this test reads of the document.
type openAPI struct {
	Paths      map[string]map[string]json.RawMessage
	Components struct {
		Schemas map[string]struct {
			Properties map[string]any
		}
	}
}

// document is openapi.json.
var document = sync.OnceValue(func() (d openAPI) {
	b, err := os.ReadFile("openapi.json")
	if err == nil {
		err = json.Unmarshal(b, &d)
	}
	if err != nil {
		panic(err)
	}
	return d
})

var (
	keyOfPath = regexp.MustCompile(`^/v1/locks/[^/]*?(:[a-z]+)?$`)
	queries   = regexp.MustCompile(`\?.*`)
)

// described returns what the document says of a request, or nil.
func described(tb testing.TB, method, path string) *operation {
	tb.Helper()
	path = queries.ReplaceAllString(path, "")
	if strings.HasPrefix(path, "/v1/locks/") {
		path = keyOfPath.ReplaceAllString(path, "/v1/locks/{key}$1")
	}
	raw := document().Paths[path][strings.ToLower(method)]
	if raw == nil {
		return nil
	}
	o := new(operation)
	require.NoError(tb, json.Unmarshal(raw, o))
	return o
}

// documented checks that the document has the answer to a request, with its media type, or else
// does not have the request, and the service neither.
func documented(tb testing.TB, method, path string, resp *http.Response) {
	tb.Helper()
	o := described(tb, method, path)
	if o == nil {
		require.Contains(tb, []int{http.StatusNotFound, http.StatusMethodNotAllowed}, resp.StatusCode, "%s %s is not in openapi.json", method, path)
		return
	}
	r, ok := o.Responses[strconv.Itoa(resp.StatusCode)]
	require.True(tb, ok, "openapi.json does not have status %d of %s %s", resp.StatusCode, method, path)
	if media, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err == nil {
		require.Contains(tb, r.Content, media, "status %d of %s %s", resp.StatusCode, method, path)
	}
}

// Each operation of the document is served, and each status that it names has a cause.
func TestDocument(t *testing.T) {
	t.Parallel()
	s := serve(t, onMemory(t).Open)
	var paths []string
	for path, methods := range document().Paths {
		paths = append(paths, path)
		for method := range methods {
			if method == "parameters" || strings.HasSuffix(path, ":watch") || path == "/v1/events" { // which have no end: see the suite, TestEvents
				continue
			}
			media := ""
			if method == "post" {
				media = "application/json"
			}
			req, err := http.NewRequestWithContext(t.Context(), strings.ToUpper(method), "http://"+s.Addr+strings.ReplaceAll(path, "{key}", "k"), strings.NewReader("{}"))
			require.NoError(t, err)
			req.Header.Set("Content-Type", media)
			resp, err := http.DefaultClient.Do(req)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.NotContains(t, []int{404, 405, 415, 500}, resp.StatusCode, "%s %s", method, path)
			documented(t, strings.ToUpper(method), path, resp)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	slices.Sort(paths)
	require.Equal(t, []string{
		"/v1", "/v1/events", "/v1/locks", "/v1/locks/{key}", "/v1/locks/{key}:acquire", "/v1/locks/{key}:force",
		"/v1/locks/{key}:release", "/v1/locks/{key}:renew", "/v1/locks/{key}:watch", "/v1/openapi.json",
	}, paths)
}

// What a request may have is what the document says, and no more: a field that is in only one of
// the two is a 400.
func TestDocumentedFields(t *testing.T) {
	t.Parallel()
	s := serve(t, onMemory(t).Open)
	values := map[string]string{
		"owner": `"o"`, "ttl": `"30s"`, "shared": "false", "wait": "false", "head_start": `"0s"`, "metadata": "{}", "under": "[]", "token": "1",
	}
	for verb, want := range map[string]int{"acquire": 200, "renew": 410, "release": 410, "force": 410} {
		path := "/v1/locks/" + verb + ":" + verb
		ref := described(t, "POST", path).RequestBody.Content["application/json"].Schema.Ref
		var members []string
		for name := range document().Components.Schemas[strings.TrimPrefix(ref, "#/components/schemas/")].Properties {
			require.Contains(t, values, name)
			members = append(members, `"`+name+`":`+values[name])
		}
		a := ask(t, s, "POST", path, "application/json", "{"+strings.Join(members, ",")+"}")
		require.Equal(t, want, a.Status, "%s: %+v", verb, a)
	}
}
