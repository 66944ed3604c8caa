package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/html"
	"golang.org/x/text/unicode/norm"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/mime"
)

// How much decoded text of a part and of a message is looked at, in octets.
const (
	maxPart = 256 << 10
	maxText = 1 << 20
)

// What kept a part of the message from being looked at; for the report header and the ledger.
const (
	noteTooLarge   = "TooLarge"   // the body is over max_size
	noteOverLimits = "OverLimits" // so many parts, or so deep, that the body is searched as it stands
)

// messageText is the subject and the text of all parts, folded.
func messageText(ctx context.Context, e *sdk.DataEvent) (text, note string, err error) {
	var b strings.Builder
	b.WriteString(e.Message.Subject)
	b.WriteByte('\n')
	note, err = bodyText(ctx, e, &b)
	return fold(b.String()), note, err
}

func bodyText(ctx context.Context, e *sdk.DataEvent, b *strings.Builder) (note string, err error) {
	body := e.Body()
	if body.Skipped() {
		return noteTooLarge, nil
	}
	tree, err := mime.Parse(ctx, e.Headers.Block(), body, mime.Limits{})
	switch {
	case errors.Is(err, mime.ErrTooDeep), errors.Is(err, mime.ErrTooMany), errors.Is(err, mime.ErrTooLarge):
		return noteOverLimits, rawText(body, b)
	case err != nil:
		return "", err
	}
	for part := range tree.Leaves() {
		if b.Len() >= maxText {
			break
		}
		if err := partText(part, b); err != nil {
			return "", err
		}
	}
	return "", nil
}

// rawText is for a body whose structure is made not to be read.
func rawText(body *sdk.BodyReader, b *strings.Builder) error {
	_, err := io.Copy(b, io.LimitReader(body.Reader(), maxText))
	return err
}

// partText adds the text of a leaf: of text parts, and of what should have parts but has none, which a reader
// shows as text. HTML is looked at as it stands, with its links, and as it is seen.
func partText(part *mime.Part, b *strings.Builder) error {
	kind, _, _ := strings.Cut(part.Type, "/")
	if kind != "text" && kind != "multipart" && kind != "message" {
		return nil
	}
	defects := len(part.Defects)
	s, _, err := part.DecodedText(maxPart)
	if err != nil {
		return err
	}
	b.WriteString(s)
	b.WriteByte('\n')
	if part.Type == "text/html" {
		writeVisible(b, s)
		b.WriteByte('\n')
	}
	if len(part.Defects) > defects { // its encoding breaks off, where a reader may go on
		_, err = io.Copy(b, io.LimitReader(part.Raw(), maxPart))
	}
	return err
}

// block elements stand on lines of their own; all others, unknown ones included, do not part what is around them.
var block = map[string]bool{
	"address": true, "article": true, "blockquote": true, "body": true, "br": true, "center": true, "dd": true, "div": true,
	"dl": true, "dt": true, "fieldset": true, "footer": true, "form": true, "h1": true, "h2": true, "h3": true, "h4": true,
	"h5": true, "h6": true, "head": true, "header": true, "hr": true, "html": true, "li": true, "main": true, "nav": true,
	"ol": true, "option": true, "p": true, "pre": true, "section": true, "select": true, "table": true, "tbody": true,
	"td": true, "tfoot": true, "th": true, "thead": true, "title": true, "tr": true, "ul": true,
}

// writeVisible writes the text of HTML as it is seen, so that a phrase cut up by tags, comments and entities is found.
func writeVisible(b *strings.Builder, source string) {
	z := html.NewTokenizer(strings.NewReader(source))
	hidden := false
	for {
		switch kind := z.Next(); kind {
		case html.ErrorToken:
			return // the end; the tokenizer takes all else as it comes
		case html.TextToken:
			if !hidden {
				b.Write(z.Text())
			}
		case html.StartTagToken, html.EndTagToken, html.SelfClosingTagToken:
			name, _ := z.TagName()
			if block[string(name)] {
				b.WriteByte(' ')
			}
			hidden = kind == html.StartTagToken && (string(name) == "style" || string(name) == "script")
		}
	}
}

// fold makes texts comparable: compatibility forms as plain ones (Unicode NFKC: full width letters, ligatures),
// lower case, any white space a single space, invisible characters dropped.
func fold(s string) string {
	out := make([]byte, 0, len(s))
	space := false
	for _, r := range norm.NFKC.String(s) {
		switch {
		case isSpace(r):
			space = len(out) > 0
			continue
		case invisible(r):
			continue
		case space:
			out = append(out, ' ')
			space = false
		}
		if r < utf8.RuneSelf {
			out = append(out, asciiLower(byte(r)))
		} else {
			out = utf8.AppendRune(out, unicode.ToLower(r))
		}
	}
	return string(out)
}

func asciiLower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

func isSpace(r rune) bool {
	if r < utf8.RuneSelf {
		return r == ' ' || r >= '\t' && r <= '\r'
	}
	return unicode.IsSpace(r)
}

// graphemeJoiner is invisible, whatever its category says.
const graphemeJoiner = '\u034F'

func invisible(r rune) bool {
	if r < utf8.RuneSelf {
		return r < ' ' || r == 0x7F
	}
	return unicode.In(r, unicode.Cf, unicode.Cc, unicode.Variation_Selector) || r == graphemeJoiner
}
