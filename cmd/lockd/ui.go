package main

import (
	"bytes"
	"cmp"
	"context"
	"embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"html/template"
	"io"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/httplock"
	lockservice "github.com/seed-215fdefa/lock/internal/service"
)

const (
	uiTime   = 20 * time.Second // for the store to answer
	maxRows  = 500              // locks, and
	maxTold  = 100              // events that are shown
	maxFound = 10_000           // locks that are read to choose from and to find deadlocks in
)

//go:embed ui
var uiFiles embed.FS

var ui = template.Must(template.New("").Funcs(template.FuncMap{
	"bar": barWidth, "cycle": drawCycle, "place": func(i int) int { return i + 1 }, "short": short, "since": since, "visible": visible, "who": who,
}).ParseFS(uiFiles, "ui/*.html"))

// uiPaths are those of the page.
var uiPaths = map[string]func(*service, http.ResponseWriter, *http.Request){
	"/":       (*service).uiLocks,
	"/lock":   (*service).uiLock,
	"/force":  (*service).uiForce,
	"/ui.css": (*service).uiFile,
	"/ui.js":  (*service).uiFile,
}

// uiPage is what the templates are given.
type uiPage struct {
	Title    string
	Live     bool // it shows what changes
	Caller   string
	Prefix   string
	Prefixes []string // that the caller may read, if the prefix is none
	Error    string

	Records   []lock.Record
	Found     int
	Cut       bool // there are more than Found
	Deadlocks []lock.Deadlock

	Record lock.Record
	Owner  string // whose grant shall be ended
	Held   bool   // as far as it is shown
	Force  bool   // the caller may force
	Events []*httplock.Event
}

func (s *service) uiFile(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-cache")
	http.ServeFileFS(w, r, uiFiles, "ui"+r.URL.Path)
}

// uiPage serves a page of one of uiPaths. The credentials are those of the API; a browser asks for a
// name, which does not matter, and a password, which is the token.
func (s *service) uiPage(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin") // with less, a form over plain HTTP has no origin
	h.Set("Cache-Control", "no-store")
	if r.Method != http.MethodGet && r.Method != http.MethodHead && (r.Method != http.MethodPost || r.URL.Path != "/force") {
		h.Set("Allow", "GET, HEAD")
		plain(w, http.StatusMethodNotAllowed, "it needs GET")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), uiTime)
	defer cancel()
	uiPaths[r.URL.Path](s, w, r.WithContext(ctx))
}

func (s *service) render(w http.ResponseWriter, r *http.Request, status int, name string, p uiPage) {
	var b bytes.Buffer
	p.Caller = nameOf(r)
	if err := ui.ExecuteTemplate(&b, name, p); err != nil {
		s.log.Error("the page has no HTML", "error", err.Error())
		status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = b.WriteTo(w)
}

// uiFail says why there is nothing to see.
func (s *service) uiFail(w http.ResponseWriter, r *http.Request, err error) {
	p, status := uiPage{Title: "Locks"}, http.StatusServiceUnavailable
	switch {
	case errors.Is(err, httplock.ErrUnauthenticated):
		status, p.Error = http.StatusUnauthorized, "Reload the page, and give a token as the password. The name may be anything."
	case errors.Is(err, errForbidden):
		status, p.Error = http.StatusForbidden, "Your token has no right to this."
		for _, right := range callerOf(r).rights {
			if right.actions[httplock.ActionList] {
				p.Prefixes = append(p.Prefixes, right.prefix)
			}
		}
	case errors.Is(err, lock.ErrInvalid):
		status, p.Error = http.StatusBadRequest, err.Error()
	case errors.Is(err, lock.ErrUnsupported):
		status, p.Error = http.StatusNotImplemented, "The store cannot list its locks."
	default:
		s.storeError(r, err)
		p.Error = "The store does not answer. Reload the page to try again."
	}
	s.render(w, r, status, "error", p)
}

// uiAsk has ask ask the store if the caller may do this. It counts and audits the request.
func (s *service) uiAsk(r *http.Request, action httplock.Action, key string, ask func() error) (err error) {
	begun := time.Now()
	if s.files.Load().access != nil {
		err = s.authorize(r, action, key)
	}
	if err == nil {
		err = ask()
	}
	s.telemetry.observe(r, httplock.Call{Action: action, Key: key, Outcome: uiOutcome(r, err), Elapsed: time.Since(begun)})
	return err
}

// uiOutcome is what the API's outcome would be.
func uiOutcome(r *http.Request, err error) string {
	switch {
	case err == nil:
		return httplock.OutcomeOK
	case errors.Is(err, httplock.ErrUnauthenticated):
		return lockservice.KindUnauthenticated
	case errors.Is(err, errForbidden):
		return lockservice.KindForbidden
	case errors.Is(err, lock.ErrInvalid):
		return lockservice.KindInvalid
	case errors.Is(err, lock.ErrUnsupported):
		return lockservice.KindUnsupported
	case errors.Is(r.Context().Err(), context.Canceled):
		return httplock.OutcomeCanceled
	}
	return lockservice.KindUnavailable
}

// uiLocks lists the locks of a prefix.
func (s *service) uiLocks(w http.ResponseWriter, r *http.Request) {
	p := uiPage{Title: "Locks", Live: true, Prefix: strings.ToValidUTF8(r.URL.Query().Get("prefix"), "")}
	if err := s.uiAsk(r, httplock.ActionList, p.Prefix, func() error { return s.uiFind(r.Context(), &p) }); err != nil {
		s.uiFail(w, r, err)
		return
	}
	p.Events = s.uiEvents(p.Prefix, 20, func(*httplock.Event) bool { return true })
	s.render(w, r, http.StatusOK, "locks", p)
}

// uiFind reads the locks of p, and finds their deadlocks.
func (s *service) uiFind(ctx context.Context, p *uiPage) error {
	admin, ok := lock.As[lock.Admin](s.store)
	if !ok {
		return lock.ErrUnsupported
	}
	for rec, err := range admin.List(ctx, p.Prefix) {
		if err != nil {
			return err
		}
		if len(p.Records) == maxFound {
			p.Cut = true
			break
		}
		p.Records = append(p.Records, rec)
	}
	slices.SortFunc(p.Records, func(a, b lock.Record) int {
		return cmp.Or(cmp.Compare(b.WaiterCount, a.WaiterCount), cmp.Compare(a.Key, b.Key))
	})
	if p.Found = len(p.Records); !p.Cut {
		var err error
		if p.Deadlocks, err = lock.FindDeadlocks(ctx, &listed{s.store, admin, p.Prefix, p.Records}); err != nil {
			return err
		}
	}
	p.Records = p.Records[:min(p.Found, maxRows)]
	return nil
}

// listed has no other keys than those of a prefix, the first time as they have been listed already.
type listed struct {
	lock.Locker
	admin  lock.Admin
	prefix string
	first  []lock.Record
}

func (l *listed) List(ctx context.Context, _ string) iter.Seq2[lock.Record, error] {
	first := l.first
	if l.first = nil; first == nil {
		return l.admin.List(ctx, l.prefix)
	}
	return func(yield func(lock.Record, error) bool) {
		for _, rec := range first {
			if !yield(rec, nil) {
				return
			}
		}
	}
}

func (l *listed) ForceRelease(ctx context.Context, key, owner string) error {
	return l.admin.ForceRelease(ctx, key, owner)
}

// uiEvents are the newest events, at most so many, the newest first.
func (s *service) uiEvents(prefix string, most int, of func(*httplock.Event) bool) (newest []*httplock.Event) {
	for _, e := range slices.Backward(s.handler.Events(prefix)) {
		if of(e) && len(newest) < most {
			newest = append(newest, e)
		}
	}
	return newest
}

// uiLock shows one lock.
func (s *service) uiLock(w http.ResponseWriter, r *http.Request) {
	key := r.URL.Query().Get("key")
	rec, err := s.uiInspect(r, key)
	if err != nil {
		s.uiFail(w, r, err)
		return
	}
	p := uiPage{Title: visible(key), Live: true, Prefix: key, Record: rec}
	p.Events = s.uiEvents(key, maxTold, func(e *httplock.Event) bool { return e.Key == key })
	p.Force = s.files.Load().access == nil || callerOf(r).may(httplock.ActionForce, key)
	s.render(w, r, http.StatusOK, "lock", p)
}

func (s *service) uiInspect(r *http.Request, key string) (rec lock.Record, err error) {
	err = s.uiAsk(r, httplock.ActionInspect, key, func() (err error) {
		if err = lock.CheckKey(key); err == nil {
			rec, err = s.store.Inspect(r.Context(), key)
		}
		return err
	})
	return rec, err
}

// uiForce says what a force release does, and does it if it is confirmed. A request from another
// site confirms nothing.
func (s *service) uiForce(w http.ResponseWriter, r *http.Request) {
	key, owner := r.URL.Query().Get("key"), r.URL.Query().Get("owner")
	if r.Method == http.MethodPost {
		if err := http.NewCrossOriginProtection().Check(r); err != nil {
			s.render(w, r, http.StatusForbidden, "error", uiPage{Title: "Force release", Error: "The request came from another site: nothing was done."})
			return
		}
		s.uiForced(w, r, key, owner)
		return
	}
	rec, err := s.uiInspect(r, key)
	if err != nil {
		s.uiFail(w, r, err)
		return
	}
	p := uiPage{Title: "Force release", Owner: owner, Record: rec}
	p.Held = p.Record.HolderCount > len(p.Record.Holders) ||
		slices.ContainsFunc(p.Record.Holders, func(h lock.Holder) bool { return h.Owner == owner })
	s.render(w, r, http.StatusOK, "force", p)
}

// uiForced has the API end a grant, with its checks and its audit.
func (s *service) uiForced(w http.ResponseWriter, r *http.Request, key, owner string) {
	body, _ := json.Marshal(map[string]string{"owner": owner})
	call := r.Clone(r.Context())
	call.URL = &url.URL{Path: "/v1/locks/=" + base64.RawURLEncoding.EncodeToString([]byte(key)) + ":force"}
	call.Header.Set("Content-Type", "application/json")
	call.Body = io.NopCloser(bytes.NewReader(body))
	answer := recorder{header: http.Header{}}
	s.handler.ServeHTTP(&answer, call)
	var problem struct{ Title, Detail string }
	switch {
	case answer.status == http.StatusNoContent:
		http.Redirect(w, r, "/lock?key="+url.QueryEscape(key), http.StatusSeeOther)
		return
	case answer.status == http.StatusUnauthorized:
		s.uiFail(w, r, httplock.ErrUnauthenticated)
		return
	case json.Unmarshal(answer.Bytes(), &problem) != nil:
		problem.Title = "the service failed"
	}
	s.render(w, r, answer.status, "error", uiPage{Title: "Force release", Error: "Nothing was done: " + strings.TrimSpace(problem.Title+". "+problem.Detail)})
}

// recorder is the API's answer to the page.
type recorder struct {
	bytes.Buffer
	header http.Header
	status int
}

func (r *recorder) Header() http.Header    { return r.header }
func (r *recorder) WriteHeader(status int) { r.status = status }
