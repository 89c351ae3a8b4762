package faultproxy_test

import (
	"bufio"
	"fmt"
	"net"

	"github.com/seed-215fdefa/lock/locktest/faultproxy"
)

// The second request arrives, and its reply is lost with the connection.
func Example() {
	server, _ := net.Listen("tcp", "127.0.0.1:0")
	defer func() { _ = server.Close() }()
	received := make(chan string, 2)
	go func() {
		conn, _ := server.Accept()
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			received <- lines.Text()
			_, _ = conn.Write([]byte("done\n"))
		}
		_ = conn.Close()
	}()

	proxy, err := faultproxy.Start(server.Addr().String()) // in a test: New(t, addr)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer proxy.Close()
	fault := proxy.Lose(faultproxy.Replies().Nth(2))
	defer fault.Heal()

	client, _ := net.Dial("tcp", proxy.Addr())
	defer func() { _ = client.Close() }()
	replies := bufio.NewReader(client)
	for _, request := range []string{"first", "second"} {
		_, _ = fmt.Fprintln(client, request)
		reply, err := replies.ReadString('\n')
		fmt.Printf("server got %s, client got %q, lost %t\n", <-received, reply, err != nil)
	}
	// Output:
	// server got first, client got "done\n", lost false
	// server got second, client got "", lost true
}
