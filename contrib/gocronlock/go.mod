module github.com/seed-215fdefa/lock/contrib/gocronlock

go 1.26.0

replace github.com/seed-215fdefa/lock => ../..

require (
	github.com/go-co-op/gocron/v2 v2.21.2
	github.com/seed-215fdefa/lock v0.0.0
	github.com/stretchr/testify v1.12.1
	go.uber.org/goleak v1.3.0
)

require (
	github.com/google/uuid v1.6.0 // indirect
	github.com/jonboulle/clockwork v0.5.0 // indirect
	github.com/robfig/cron/v3 v3.0.1 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
)
