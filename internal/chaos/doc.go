// Package chaos runs campaigns against the stores, in the manner of Jepsen
// (https://jepsen.io): several processes take locks and permits through a [lock.Client] and
// a semaphore while a nemesis breaks their network, their servers and the processes
// themselves, and what the callers were told is checked afterwards.
//
//	make chaos STORE=etcd SEED=7 FOR=3m
//
// The seed fixes the schedule of faults and what each caller does; how the two meet is up
// to the machine, so a seed makes a finding likely again, not certain.
//
// A process is the test binary, executed again. It writes each call and its answer to a
// journal, with one write for each line, so that a SIGKILL loses nothing but what was
// under way. All times are CLOCK_MONOTONIC, which the processes of a machine share. The
// checks know nothing of how a store works, and share no code with package locktest.
//
// Two faults are missing. The machine's clock is not stepped: it belongs to others too. And
// the memory store has no server to kill: a small one in the test's own process serves it.
package chaos
