package classifier

// Links calls yield with where each link of the message's HTML leads and what is seen of it, as they stand.
func (d *Document) Links(yield func(target, label string) bool) {
	for _, t := range d.Texts {
		if t.html == nil {
			continue
		}
		for _, l := range t.html.links {
			if !yield(l.target, l.label) {
				return
			}
		}
	}
}
