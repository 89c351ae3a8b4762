// Package lockv1 is the lock service's protocol, generated from lock.proto by "go generate": its
// comments say what each message means.
package lockv1

//go:generate sh generate.sh
