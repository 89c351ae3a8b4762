package testserver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

// source is where servers come from.
type source interface {
	// prepare makes a server ready to be started; command is program and arguments.
	prepare(k *kind, command []string) (process, error)
}

// source finds, once for each kind, where its servers come from.
func (k *kind) source() (source, error) {
	k.once.Do(func() { k.src, k.err = k.find() })
	return k.src, k.err
}

func (k *kind) find() (source, error) {
	want := os.Getenv("LOCK_TEST_SERVERS")
	var dockerErr, nativeErr error
	switch want {
	case "", "docker", "native":
	default:
		return nil, fmt.Errorf("LOCK_TEST_SERVERS=%q: it may be docker or native", want)
	}
	daemon := false
	if want != "native" {
		dockerErr = findDaemon()
		if daemon = dockerErr == nil; daemon {
			dockerErr = findImage(k.image)
		}
		if dockerErr == nil {
			return dockerSource{}, nil
		}
	}
	if want != "docker" {
		var path string
		path, nativeErr = findProgram(k.program, k.places)
		if nativeErr == nil && k.file != "" {
			_, nativeErr = os.Stat(k.file)
		}
		if nativeErr == nil {
			return nativeSource{path}, nil
		}
	}
	if daemon { // last, since it may take minutes
		if dockerErr = pullImage(k.image); dockerErr == nil {
			return dockerSource{}, nil
		}
	}
	return nil, fmt.Errorf("no %s server to test with: run `make servers`, or install %s, "+
		"or start Docker (image %s), or run `go test -short` for the tests that need no server\n%w",
		k.name, k.install, k.image, errors.Join(dockerErr, nativeErr))
}

// findProgram looks in places first, since the PATH may have a version that is too old,
// and at last where servers are installed although a user's PATH may not have it.
func findProgram(name string, places []string) (string, error) {
	for _, place := range places {
		if path, err := findIn(place, name); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if err == nil {
		return filepath.Abs(path)
	}
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/usr/local/bin", "/opt/homebrew/bin"} {
		if path, err := findIn(dir, name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("native: %w", err)
}

// findIn looks in the folders that match the pattern, the newest version first.
func findIn(pattern, name string) (string, error) {
	dirs, _ := filepath.Glob(pattern)
	slices.SortStableFunc(dirs, func(a, b string) int { return slices.Compare(numbersIn(a), numbersIn(b)) })
	for _, dir := range slices.Backward(dirs) {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no %s in %s", name, pattern)
}

var number = regexp.MustCompile(`\d+`)

// numbersIn are those in a folder's name, which are its version.
func numbersIn(dir string) (ns []int) {
	for _, s := range number.FindAllString(dir, -1) {
		n, _ := strconv.Atoi(s)
		ns = append(ns, n)
	}
	return ns
}

// cacheDir is where servers.sh puts servers that no package manager has: LOCK_TEST_CACHE,
// or else the folder lock-testserver in the user's cache.
func cacheDir() string {
	if dir := os.Getenv("LOCK_TEST_CACHE"); dir != "" {
		return dir
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	return filepath.Join(dir, "lock-testserver")
}
