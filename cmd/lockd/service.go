package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
	"google.golang.org/grpc"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/cmd/internal/storeurl"
	"github.com/seed-215fdefa/lock/contrib/grpclock"
	"github.com/seed-215fdefa/lock/httplock"
	lockservice "github.com/seed-215fdefa/lock/internal/service"
)

// kindMisdirected is the kind of a problem that package httplock does not have.
const kindMisdirected = "misdirected"

// service is a running lockd.
type service struct {
	config
	log       *slog.Logger
	store     *storeurl.Store
	auditFile *logFile // nil: standard error
	telemetry *telemetry
	metrics   http.Handler
	handler   *httplock.Handler
	server    *http.Server
	locks     *grpclock.Server // nil without --grpc, as the next
	grpc      *grpc.Server
	unknown   atomic.Int64  // calls over gRPC whose callers are not known
	bodyTime  time.Duration // for a request's body to arrive, also one that nobody reads, and for a client to read

	files    atomic.Pointer[files]
	ready    readiness
	stopping atomic.Bool
	errors   seldom
}

// serve runs the service until a signal ends it.
func serve(c config, log *slog.Logger) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP)
	defer signal.Stop(signals)
	s, err := open(c, log) // which SIGTERM ends: there is nothing to drain yet
	if err != nil {
		return err
	}
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	failed := make(chan error, 2)
	if err := s.start(failed); err != nil {
		return errors.Join(err, s.store.Close())
	}
	go func() { _ = s.checkStore(context.Background()) }() // for the log
	for {
		select {
		case err := <-failed:
			return errors.Join(err, s.stop())
		case sig := <-signals:
			if sig == syscall.SIGHUP {
				s.reload()
				continue
			}
			log.Info("stopping", "signal", sig.String(), "grace", c.grace.String())
			signal.Reset(syscall.SIGINT, syscall.SIGTERM) // the next one is deadly
			return s.stop()
		}
	}
}

// start listens, and serves until an error comes.
func (s *service) start(failed chan<- error) error {
	listener, err := s.listen("--listen", s.config.listen)
	if err != nil {
		return err
	}
	if s.grpc != nil {
		over, err := s.listen("--grpc", s.overGRPC)
		if err != nil {
			return errors.Join(err, listener.Close())
		}
		go func() { failed <- s.grpc.Serve(over) }()
	}
	go func() { failed <- s.serve(listener) }()
	return nil
}

// open makes the service, without a listener.
func open(c config, log *slog.Logger) (*service, error) {
	s := &service{config: c, log: log, bodyTime: 10 * time.Second}
	f, err := c.load()
	if err != nil {
		return nil, usageError{err}
	}
	s.files.Store(f)
	var audit io.Writer = os.Stderr
	if c.audit != "" {
		s.auditFile = &logFile{path: c.audit}
		if err := s.auditFile.reopen(); err != nil {
			return nil, usageError{err}
		}
		audit = s.auditFile
	}
	if s.store, err = storeurl.Open(context.Background(), c.store); err != nil {
		if errors.Is(err, lock.ErrUnavailable) {
			return nil, err
		}
		return nil, usageError{err}
	}
	s.telemetry = newTelemetry(audit)
	opts := []httplock.HandlerOption{
		httplock.WithErrorLog(s.storeError), httplock.WithObserver(s.telemetry.observe), httplock.WithMaxWaiters(c.maxWaiters, 0),
	}
	if c.tokens != "" {
		opts = append(opts, httplock.WithAuthorization(s.authorize), httplock.WithCaller(nameOf))
	}
	shared := lockservice.Share(s.store)
	s.handler = httplock.NewHandler(shared, opts...)
	s.metrics = promhttp.HandlerFor(s.telemetry.registry, promhttp.HandlerOpts{})
	s.server = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 5 * time.Second, // and for a TLS handshake
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,   // a key, a prefix and a token are less
		WriteTimeout:      s.bodyTime, // for what net/http answers itself: ServeHTTP lifts it
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		// No ReadTimeout: it would end long polls and event streams.
	}
	s.server.RegisterOnShutdown(s.handler.Close)
	if c.overGRPC != "" {
		s.openGRPC(shared)
	}
	s.telemetry.waiting(s.handler.Waiting)
	return s, nil
}

// listen refuses what everybody could use by mistake.
func (s *service) listen(flag, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	addr, ok := l.Addr().(*net.TCPAddr)
	local := ok && addr.IP.IsLoopback()
	switch {
	case !local && s.tokens == "" && !s.noAuth:
		_ = l.Close()
		return nil, misuse("%s %s is not loopback: say by --tokens FILE who may do what, or by --no-auth that everybody may", flag, address)
	case !local && s.cert == "" && s.tokens != "":
		s.log.Warn("tokens travel in the clear, unless a proxy in front of this speaks TLS: see --tls-cert")
	}
	msg := "serving"
	if flag == "--grpc" {
		msg = "serving gRPC"
	}
	s.log.Info(msg, "address", l.Addr().String(), "store", s.store.Capabilities().Store,
		"tls", s.cert != "", "authentication", s.tokens != "")
	return boundedListener{netutil.LimitListener(l, s.maxConnections), s.bodyTime}, nil
}

// boundedListener accepts connections that end if a client does not read what is written for so long.
type boundedListener struct {
	net.Listener
	within time.Duration
}

// Accept implements [net.Listener].
func (l boundedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return boundedConn{c, l.within}, nil
}

type boundedConn struct {
	net.Conn
	within time.Duration
}

// Write implements [net.Conn]. It closes the connection if it fails: gRPC leaves that to its reader, which
// would notice nothing.
func (c boundedConn) Write(b []byte) (n int, err error) {
	if err = c.SetWriteDeadline(time.Now().Add(c.within)); err == nil {
		n, err = c.Conn.Write(b)
	}
	if err != nil {
		_ = c.Close()
	}
	return n, err
}

func (s *service) serve(l net.Listener) error {
	if s.cert == "" {
		return s.server.Serve(l)
	}
	s.server.TLSConfig = s.tlsConfig()
	return s.server.ServeTLS(l, "", "")
}

// tlsConfig has the certificates that were read last.
func (s *service) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return s.files.Load().tls, nil
		},
	}
}

// boundedWriter is a response that ends if its client does not take what is written for so long. Over HTTP/2
// a client may read all that comes, and yet allow no body.
type boundedWriter struct {
	http.ResponseWriter
	within time.Duration
}

// Write implements [http.ResponseWriter].
func (w boundedWriter) Write(b []byte) (int, error) {
	w.limit()
	defer w.lift() // it would end a response that pauses, such as a list from a slow store
	return w.ResponseWriter.Write(b)
}

// FlushError is for [http.ResponseController], as Unwrap is.
func (w boundedWriter) FlushError() error {
	w.limit()
	defer w.lift()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Unwrap returns the response without a bound.
func (w boundedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w boundedWriter) limit() { w.deadline(time.Now().Add(w.within)) }
func (w boundedWriter) lift()  { w.deadline(time.Time{}) }

func (w boundedWriter) deadline(t time.Time) {
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(t) // not all writers have it
}

// ServeHTTP implements http.Handler.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	bounded := boundedWriter{w, s.bodyTime}
	bounded.lift()
	// What is buffered is sent when the rest of the request has come, or will not come any more.
	defer func() { bounded.deadline(time.Now().Add(2 * s.bodyTime)) }()
	s.route(bounded, r)
}

func (s *service) route(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 { // net/http waits for a body that nobody reads
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.bodyTime))
	}
	switch r.URL.Path {
	case "/healthz":
		plain(w, http.StatusOK, "ok")
		return
	case "/readyz":
		s.readyz(w, r)
		return
	case "/metrics":
		s.metrics.ServeHTTP(w, r)
		return
	}
	if !s.named(r.Host) {
		s.misdirected(w, r)
		return
	}
	if f := s.files.Load(); f.access != nil {
		c := f.identify(r)
		if c == nil {
			w.Header()["Www-Authenticate"] = []string{"Bearer", `Basic realm="lockd", charset="UTF-8"`}
		}
		r = withCaller(r, c)
	}
	if uiPaths[r.URL.Path] != nil {
		s.uiPage(w, r)
		return
	}
	s.handler.ServeHTTP(w, r)
}

// named reports whether host, of a request, may be this service. Without tokens a page of the web must not
// get in by DNS rebinding, that is under a name of its site's, which leads here.
func (s *service) named(host string) bool {
	if s.tokens != "" || s.noAuth {
		return true
	}
	name := (&url.URL{Host: host}).Hostname()
	_, err := netip.ParseAddr(name)
	own, _, _ := net.SplitHostPort(s.config.listen)
	return err == nil || strings.EqualFold(name, "localhost") || strings.EqualFold(name, own)
}

// misdirected refuses a request by a problem such as those of the API.
func (s *service) misdirected(w http.ResponseWriter, r *http.Request) {
	s.telemetry.observe(r, httplock.Call{Outcome: kindMisdirected})
	b, _ := json.Marshal(map[string]any{
		"type": "urn:httplock:" + kindMisdirected, "title": "the service does not have this name", "status": http.StatusMisdirectedRequest,
		"detail": fmt.Sprintf("host %.80q: without --tokens it must be an IP address, localhost or the name in --listen; --no-auth serves any", r.Host),
	})
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusMisdirectedRequest)
	_, _ = w.Write(b)
}

func plain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n")
}

// storeError logs what the store says of its trouble. What was refused is in the audit log.
func (s *service) storeError(_ *http.Request, err error) {
	if errors.Is(err, httplock.ErrUnauthenticated) || errors.Is(err, errForbidden) || s.stopping.Load() {
		return
	}
	s.telemetry.storeErrors.Inc()
	if s.errors.ok() {
		s.log.Error("the store failed", "error", err.Error())
	}
}

// reload reads all files anew, or keeps them all.
func (s *service) reload() {
	f, err := s.load()
	if err == nil && s.auditFile != nil {
		err = s.auditFile.reopen()
	}
	if err != nil {
		s.log.Error("the files were not read anew: all old ones stay", "error", err.Error())
		return
	}
	s.files.Store(f)
	s.log.Info("the files were read anew")
}

// stop lets clients go over to other replicas: /readyz fails, then, after the drain, no connection is
// accepted, waits are told to go on elsewhere, and requests under way are answered. The store is
// closed last. What is held stays.
func (s *service) stop() error {
	s.stopping.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), s.grace)
	defer cancel()
	time.Sleep(s.drain)
	over := make(chan error, 1)
	go func() { over <- s.stopGRPC(ctx) }()
	err := s.server.Shutdown(ctx) // which closes the handler too
	if err != nil {
		_ = s.server.Close()
	}
	err = errors.Join(err, <-over)
	closed := make(chan error, 1)
	go func() {
		s.handler.Close() // waits for its goroutines
		closed <- s.store.Close()
	}()
	select {
	case failure := <-closed:
		if failure != nil {
			s.log.Warn("the store was not closed cleanly", "error", failure.Error())
		}
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("not everything was answered within --grace %v", s.grace)
	}
	s.log.Info("stopped")
	return nil
}
