package main

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"
)

// files is what the service has read of the files that its command line names.
type files struct {
	access *access     // nil without --tokens
	tls    *tls.Config // nil without --tls-cert

	mu      sync.Mutex                      // guards trusted
	trusted map[[sha256.Size]byte]time.Time // until when, by certificate; see trusts
}

// maxTrusted is for how many certificates trusts remembers what it found.
const maxTrusted = 10_000

// trusts reports whether an authority has signed the first certificate, which the others may lead to. The
// handshake has asked that too, but of the files of its time. It takes about as long as all the rest of a
// request, so f remembers whom it trusts.
func (f *files) trusts(sent []*x509.Certificate) bool {
	if len(sent) == 0 || f.tls == nil || f.tls.ClientCAs == nil { // nil would be the system's authorities
		return false
	}
	id := sha256.Sum256(sent[0].Raw)
	f.mu.Lock()
	until := f.trusted[id]
	f.mu.Unlock()
	if time.Now().Before(until) {
		return true
	}
	between := x509.NewCertPool()
	for _, c := range sent[1:] {
		between.AddCert(c)
	}
	chains, err := sent[0].Verify(x509.VerifyOptions{
		Roots: f.tls.ClientCAs, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return false
	}
	first := slices.MinFunc(chains[0], func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.trusted) >= maxTrusted {
		clear(f.trusted)
	}
	f.trusted[id] = first.NotAfter
	return true
}

func (c config) load() (*files, error) {
	f := &files{trusted: map[[sha256.Size]byte]time.Time{}}
	var err error
	if c.tokens != "" {
		if f.access, err = loadAccess(c.tokens); err != nil {
			return nil, fmt.Errorf("--tokens: %w", err)
		}
		for _, caller := range f.access.callers {
			if caller.certificate != "" && c.clientCA == "" {
				return nil, fmt.Errorf("--tokens: %s: caller %q has a certificate: give --client-ca, else nobody checks it", c.tokens, caller.name)
			}
		}
	}
	if c.cert == "" {
		return f, nil
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return nil, fmt.Errorf("--tls-cert, --tls-key: %w", err)
	}
	f.tls = &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"},
	}
	if c.clientCA == "" {
		return f, nil
	}
	pem, err := os.ReadFile(c.clientCA)
	if err != nil {
		return nil, fmt.Errorf("--client-ca: %w", err)
	}
	f.tls.ClientCAs = x509.NewCertPool()
	if !f.tls.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--client-ca: %s has no certificate in PEM", c.clientCA)
	}
	f.tls.ClientAuth = tls.VerifyClientCertIfGiven // others may have a token, and probes have neither
	return f, nil
}

// logFile is a file that is appended to, and may be moved away before it is opened anew.
type logFile struct {
	path string

	mu sync.Mutex // guards f
	f  *os.File
}

// reopen opens the file at the path anew. If that fails, the old file stays in use.
func (l *logFile) reopen() error {
	f, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("--audit: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		_ = l.f.Close()
	}
	l.f = f
	return nil
}

// Write implements io.Writer.
func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Write(b)
}
