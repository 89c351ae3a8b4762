// Package rediskit has what the stores on Redis share: scripts in files, and round trips
// that concurrent calls share.
package rediskit
