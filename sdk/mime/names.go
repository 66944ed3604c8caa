package mime

import (
	"mime"
	"slices"
	"strings"
)

// Names are all file names that a reader might take for p's, the most likely one first: those of each Content-Disposition
// and Content-Type, whether encoded by RFC 2047 or RFC 2231. None if there is none.
func (p *Part) Names() []string {
	all := []string{p.Filename, p.Params["name"]}
	for _, field := range []string{"Content-Disposition", "Content-Type"} {
		for _, value := range p.Header.All(field) {
			_, params, _ := mime.ParseMediaType(value)
			all = append(all, DecodeWords(params["filename"]), DecodeWords(params["name"]))
		}
	}
	var names []string
	for _, name := range all {
		if name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// Types are all media types that a reader might take for p's, in lower case: Type, and that of each Content-Type field.
func (p *Part) Types() []string {
	types := []string{p.Type}
	for _, value := range p.Header.All("Content-Type") {
		t, _, _ := strings.Cut(value, ";")
		if t = strings.ToLower(strings.TrimSpace(t)); !slices.Contains(types, t) {
			types = append(types, t)
		}
	}
	return types
}
