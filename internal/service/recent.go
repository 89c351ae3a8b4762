package service

import "time"

// memoryLife is for how long the server remembers what became of an owner, at least: longer than
// a request may linger in the buffers of a connection that its client has given up.
const memoryLife = 2 * time.Minute

// memory has what became of some owners. It forgets them after one memoryLife and before two, as
// long as others are added. The zero value has none. It is not safe for concurrent use.
type memory[V any] struct {
	young, old map[place]V
	since      time.Time // when the first of young was added
}

func (m *memory[V]) add(p place, v V) {
	now := time.Now()
	if age := now.Sub(m.since); age > memoryLife {
		if age > 2*memoryLife {
			m.young = nil
		}
		m.old, m.young, m.since = m.young, make(map[place]V), now
	}
	m.young[p] = v
}

func (m *memory[V]) get(p place) (v V, ok bool) {
	if v, ok = m.young[p]; !ok {
		v, ok = m.old[p]
	}
	return v, ok
}
