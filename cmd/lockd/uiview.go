package main

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/seed-215fdefa/lock"
)

// barWidth is how long the bar of d is, of 100: a day is all of it, on a scale that shows seconds too.
func barWidth(d time.Duration) string {
	w := 100 * math.Log1p(max(d, 0).Seconds()) / math.Log1p((24 * time.Hour).Seconds())
	return strconv.FormatFloat(min(w, 100), 'f', 1, 64)
}

// since is d for people.
func since(d time.Duration) string {
	switch s := d.Round(time.Second); {
	case d < 0:
		return "unknown"
	case s < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case s < time.Hour:
		return s.String()
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}

// visible is s, quoted if it would not show as it is: by what is no character or turns the writing
// around, or by spaces.
func visible(s string) string {
	if s == "" || strings.TrimSpace(s) != s || strings.Contains(s, "  ") || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// short is the beginning of s.
func short(n int, s string) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// who is what metadata says.
func who(metadata map[string]string) string {
	var facts []string
	for _, name := range slices.Sorted(maps.Keys(metadata)) {
		facts = append(facts, visible(name)+"="+visible(metadata[name]))
	}
	return strings.Join(facts, ", ")
}

// cycle is a deadlock as it is drawn and told.
type cycle struct {
	Width, Height int
	Nodes         []cycleNode // the first is the youngest
}

// cycleNode is one who holds and waits.
type cycleNode struct {
	Owner, Who      string
	Holds, WaitsFor string
	Grant, Behind   string // the owners of what it holds, and of who waits ahead of it
	X, Y            float64
	Arrow           string // to the next, as the path of an SVG
}

const (
	nodeWidth, nodeHeight = 220.0, 52.0
	maxDrawn              = 12
)

// drawCycle puts the waits of d on an ellipse, in their order.
func drawCycle(d lock.Deadlock) cycle {
	n := len(d.Cycle)
	a, b := 240.0, 32*float64(n)
	c := cycle{Width: int(2*a+nodeWidth) + 20, Height: int(2*b+nodeHeight) + 20}
	if n > maxDrawn {
		c.Width = 0
	}
	at := func(i float64) (x, y float64) {
		angle := math.Pi + 2*math.Pi*i/float64(n) // the first is on the left
		return float64(c.Width)/2 + a*math.Cos(angle), float64(c.Height)/2 + b*math.Sin(angle)
	}
	for i, w := range d.Cycle {
		held := d.Cycle[(i+n-1)%n] // the one before waits for what this one holds
		x, y := at(float64(i))
		toX, toY := at(float64(i + 1))
		bendX, bendY := at(float64(i) + .5)
		bendX, bendY = (bendX+(x+toX)/2)/2, (bendY+(y+toY)/2)/2
		fromX, fromY := border(x, y, bendX, bendY)
		toX, toY = border(toX, toY, bendX, bendY)
		c.Nodes = append(c.Nodes, cycleNode{
			Owner: w.Waiter.Owner, Who: who(w.Waiter.Metadata), Holds: held.Key, WaitsFor: w.Key, Grant: held.For, Behind: w.Behind,
			X: x - nodeWidth/2, Y: y - nodeHeight/2,
			Arrow: fmt.Sprintf("M%.0f %.0fQ%.0f %.0f %.0f %.0f", fromX, fromY, bendX, bendY, toX, toY),
		})
	}
	return c
}

// border is where the way from the middle of a node to another point leaves the node.
func border(x, y, toX, toY float64) (float64, float64) {
	dx, dy := toX-x, toY-y
	t := 1 / max(math.Abs(dx)/(nodeWidth/2+6), math.Abs(dy)/(nodeHeight/2+6), 1e-9)
	return x + t*dx, y + t*dy
}

// Label names the node in few characters.
func (n cycleNode) Label() string {
	if n.Who != "" {
		return n.Who
	}
	return n.Owner
}
