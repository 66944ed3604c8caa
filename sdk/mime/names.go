package mime

import (
	"mime"
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
	return distinct(all)
}

// Types are all media types that a reader might take for p's, in lower case: Type, and that of each Content-Type field.
func (p *Part) Types() []string {
	types := []string{p.Type}
	for _, value := range p.Header.All("Content-Type") {
		t, _, _ := strings.Cut(value, ";")
		types = append(types, strings.ToLower(strings.TrimSpace(t)))
	}
	return distinct(types)
}

// distinct texts of a list, in order, without empty ones. There may be thousands.
func distinct(list []string) (left []string) {
	seen := make(map[string]bool, len(list))
	for _, s := range list {
		if s != "" && !seen[s] {
			seen[s] = true
			left = append(left, s)
		}
	}
	return left
}
