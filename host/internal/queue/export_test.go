package queue

// TryDue is Due for tests: it answers with nil at once when nothing is due, or what is due cannot be loaded.
func (q *Queue) TryDue() *Item {
	id := ""
	q.ask(func() {
		q.schedule.promote(q.now())
		if sl := q.schedule.take(); sl != nil {
			id = sl.id
		}
	})
	if id == "" {
		return nil
	}
	item, err := q.store.Load(id)
	if err != nil {
		q.unloadable(id, err)
		return nil
	}
	return item
}
