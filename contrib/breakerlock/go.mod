module github.com/seed-215fdefa/lock/contrib/breakerlock

go 1.26.0

replace github.com/seed-215fdefa/lock => ../..

require (
	github.com/seed-215fdefa/lock v0.0.0
	github.com/sony/gobreaker/v2 v2.4.0
	github.com/stretchr/testify v1.9.0
	go.uber.org/goleak v1.3.0
)

require (
	github.com/davecgh/go-spew v1.1.1 // indirect
	github.com/pmezard/go-difflib v1.0.0 // indirect
	gopkg.in/yaml.v3 v3.0.1 // indirect
)
