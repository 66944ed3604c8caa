package queue

// TryDue is Due for tests: it answers with nil at once when nothing is due.
func (q *Queue) TryDue() (*Item, error) {
	id := ""
	q.ask(func() {
		q.schedule.promote(q.now())
		if sl := q.schedule.take(); sl != nil {
			id = sl.id
		}
	})
	if id == "" {
		return nil, nil
	}
	return q.store.Load(id)
}
