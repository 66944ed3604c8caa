package main

import (
	"context"
	"errors"
	"html"
	"strings"
	"unicode"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/mime"
)

// maxText is how much decoded text of a message is looked at, in bytes.
const maxText = 512 << 10

// text of a message: subject and all text parts.
type text struct {
	raw    string
	folded string // lower case, white space as single spaces
}

// messageText reads the text of a message. note says what kept it from reading all.
func messageText(ctx context.Context, e *sdk.DataEvent) (text, string) {
	var raw strings.Builder
	raw.WriteString(e.Message.Subject)
	raw.WriteString("\n")
	note := bodyText(ctx, e, &raw)
	return text{raw.String(), fold(raw.String())}, note
}

func bodyText(ctx context.Context, e *sdk.DataEvent, out *strings.Builder) (note string) {
	body := e.Body()
	if body.Skipped() {
		return "TooLarge"
	}
	tree, err := mime.Parse(ctx, e.Headers.Block(), body, mime.Limits{})
	switch {
	case errors.Is(err, mime.ErrTooDeep), errors.Is(err, mime.ErrTooMany), errors.Is(err, mime.ErrTooLarge):
		return "OverLimits"
	case err != nil:
		return "Unreadable"
	}
	for part := range tree.Leaves() {
		if !strings.HasPrefix(part.Type, "text/") || out.Len() >= maxText {
			continue
		}
		s, _, err := part.DecodedText(int64(maxText - out.Len()))
		if err != nil {
			return "Unreadable"
		}
		out.WriteString(s)
		if part.Type == "text/html" {
			out.WriteString("\n")
			out.WriteString(visible(s))
		}
		out.WriteString("\n")
	}
	return ""
}

// visible drops the tags of HTML, so that a phrase cut up by them is found.
func visible(s string) string {
	var b strings.Builder
	for {
		text, rest, found := strings.Cut(s, "<")
		b.WriteString(text)
		if !found {
			return html.UnescapeString(b.String())
		}
		_, s, _ = strings.Cut(rest, ">")
	}
}

// fold makes texts comparable: lower case, any white space a single space, invisible characters dropped.
func fold(s string) string {
	var b strings.Builder
	space := false
	for _, r := range s {
		switch {
		case unicode.IsSpace(r):
			space = b.Len() > 0
			continue
		case unicode.Is(unicode.Cf, r): // zero width joiners and the like
			continue
		}
		if space {
			b.WriteByte(' ')
			space = false
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
