package testserver

import (
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
)

// Several test binaries run at once and each needs ports that stay its own while a
// server is down between Kill and Start. So ports are taken below the range from which
// the kernel gives ports to outgoing connections, in blocks, and a process owns a block
// by listening on its first port for as long as it lives.
const (
	firstPort = 20000
	blockSize = 20
	blocks    = 600
)

var ports struct {
	mu     sync.Mutex
	next   int            // the next port to give out
	end    int            // the first one that is not in our block
	owners []net.Listener // one for each block; never accepts
}

// reservePorts returns n ports on which nothing listens and that no other call of
// reservePorts, in any process, returns. Ports are not given back: a client that a test
// forgot to close must not meet the next test's server.
func reservePorts(n int) ([]int, error) {
	ports.mu.Lock()
	defer ports.mu.Unlock()
	var got []int
	for len(got) < n {
		if ports.next == ports.end {
			if err := claimBlock(); err != nil {
				return nil, err
			}
		}
		port := ports.next
		ports.next++
		if l, err := listen(port); err == nil {
			_ = l.Close()
			got = append(got, port)
		}
	}
	return got, nil
}

func claimBlock() error {
	for i := range blocks {
		block := firstPort + (os.Getpid()+i)%blocks*blockSize
		if l, err := listen(block); err == nil {
			ports.owners = append(ports.owners, l)
			ports.next, ports.end = block+1, block+blockSize
			return nil
		}
	}
	return fmt.Errorf("no free ports from %d to %d", firstPort, firstPort+blocks*blockSize-1)
}

func listen(port int) (net.Listener, error) {
	return net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
}

// portTaken tells whether a server's output blames its port. The others' words for it
// are "Failed listening", "bind: …" and "Address in use". PostgreSQL keeps the reason to itself.
func portTaken(output string) bool {
	output = strings.ToLower(output)
	return strings.Contains(output, "address already in use") || strings.Contains(output, "address in use") ||
		strings.Contains(output, "could not create any tcp/ip sockets")
}
