package testserver

import (
	"context"
	"net"
	"strconv"
	"testing"
)

var nginxKind = &kind{
	name:    "nginx",
	image:   "nginx:1.28-alpine",
	program: "nginx",
	install: "nginx",
	ready: func(ctx context.Context, addr string) error {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err == nil {
			_ = conn.Close()
		}
		return err
	},
}

// Nginx gives the test a reverse proxy in front of the HTTP server at addr, set up as
// docs/service.md asks.
func Nginx(tb testing.TB, addr string) *Server {
	tb.Helper()
	NeedServer(tb)
	return launch(tb, nginxKind, 1, func(ports []int) []string {
		return []string{"sh", "-c", nginxScript, "nginx", strconv.Itoa(ports[0]), addr}
	})
}

// nginxScript listens on port $1 in front of the server at $2.
const nginxScript = `set -e
dir=$PWD
[ -w . ] || dir=$(mktemp -d) # in a container
cat >"$dir/nginx.conf" <<END
daemon off;
master_process off;
pid $dir/pid;
error_log stderr;
events { worker_connections 4096; }
http {
	access_log off;
	client_body_temp_path $dir/body;
	proxy_temp_path $dir/proxy;
	fastcgi_temp_path $dir/fastcgi;
	uwsgi_temp_path $dir/uwsgi;
	scgi_temp_path $dir/scgi;
	upstream lockd {
		server $2;
		keepalive 64;
	}
	server {
		listen 127.0.0.1:$1;
		location / {
			proxy_pass http://lockd;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_buffering off;
			proxy_read_timeout 1h;
			proxy_next_upstream off;
		}
	}
}
END
exec nginx -e stderr -c "$dir/nginx.conf"
`
