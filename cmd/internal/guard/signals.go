package guard

import (
	"os"
	"os/signal"
	"syscall"
)

// Notify is [signal.Notify], without signals for all, except that a SIGHUP or SIGINT that this process was
// started to ignore, as by nohup, stays ignored, also by the programs that it starts.
func Notify(c chan<- os.Signal, signals ...syscall.Signal) {
	if len(signals) == 0 {
		for s := range syscall.Signal(65) { // as many as os/signal knows
			signals = append(signals, s)
		}
	}
	for _, s := range signals {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
}
