#!/bin/sh
# Generates lock.pb.go and lock_grpc.pb.go. It needs protoc, Debian's package protobuf-compiler; the
# plugins are pinned in this module's go.mod.
set -eu
tools=$(mktemp -d)
trap 'rm -r "$tools"' EXIT
go build -o "$tools/" \
	google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
module=module=github.com/seed-215fdefa/lock/contrib/grpclock/lockv1
PATH="$tools:$PATH" protoc -Ilock/v1=. --go_out=. --go_opt=$module --go-grpc_out=. --go-grpc_opt=$module lock/v1/lock.proto
