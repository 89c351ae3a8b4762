// Package bench measures the library and prints the tables of docs/performance.md:
//
//	make bench
//
// Machines differ and are shared, so what counts are ratios within one run: what is
// compared takes turns in short slices, and the median of the slices' ratios is told.
//
// It is a module of its own, because the libraries to compare with are no requirement of
// this one.
package bench
