package classifier

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"time"
)

// magic is the first line of a model file. Then come one line of JSON, the weights of the words (int16, little endian)
// and the SHA-256 of all that.
const magic = "postern contentfilter model 2\n"

// maxFile is how large a model may be, in octets.
const maxFile = 16 << 20

// maxHeader of the line of JSON.
const maxHeader = 16 << 10

// fileHeader is the line of JSON.
type fileHeader struct {
	Recipe  Recipe    `json:"recipe"`
	Trained time.Time `json:"trained"`
	Spam    int       `json:"spam"`
	Ham     int       `json:"ham"`
	Bits    int       `json:"bits"`
	Scale   float64   `json:"scale"` // of a weight
	Bias    float64   `json:"bias"`
	Words   curve     `json:"words"`
	Curve   curve     `json:"curve"`

	Signs    map[string]float64 `json:"signs"` // their weights
	SignBias float64            `json:"sign_bias"`
}

// Write the model.
func (m *Model) Write(w io.Writer) error {
	largest := 0.0
	for _, x := range m.weights {
		largest = max(largest, math.Abs(float64(x)))
	}
	h := fileHeader{m.Recipe, m.Trained, m.Spam, m.Ham, m.bits, max(largest, 1e-9) / math.MaxInt16, m.bias, m.words, m.curve, map[string]float64{}, m.signs.bias}
	for id, weight := range m.signs.each {
		h.Signs[signs[id].name] = weight
	}
	line, err := json.Marshal(h)
	if err != nil {
		return err
	}
	b := append(append([]byte(magic), line...), '\n')
	for _, x := range m.weights {
		b = binary.LittleEndian.AppendUint16(b, uint16(int16(math.Round(float64(x)/h.Scale))))
	}
	sum := sha256.Sum256(b)
	_, err = w.Write(append(b, sum[:]...))
	return err
}

// Save the model to a file, which is replaced at once or not at all. Everybody may read it who can reach the folder: who
// trains and who rates may be different users.
func (m *Model) Save(path string) error {
	name := fmt.Sprintf("%s.%08x", path, rand.Uint32())
	temp, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer os.Remove(name)
	if err := errors.Join(m.Write(temp), temp.Sync(), temp.Close()); err != nil {
		return fmt.Errorf("writing the model: %w", err)
	}
	return os.Rename(name, path)
}

// Load a model from a file.
func Load(path string) (*Model, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	m, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// Parse a model as Write has written it. What is broken, cut off or of another kind is refused.
func Parse(b []byte) (*Model, error) {
	switch {
	case len(b) > maxFile:
		return nil, fmt.Errorf("a model of more than %d MiB", maxFile>>20)
	case !bytes.HasPrefix(b, []byte(magic)):
		return nil, errors.New("no model of this agent, or of another version: it does not begin with \"" + magic[:len(magic)-1] + "\"")
	case len(b) < len(magic)+sha256.Size:
		return nil, errors.New("the model is cut off")
	}
	content, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if want := sha256.Sum256(content); !bytes.Equal(sum, want[:]) {
		return nil, errors.New("the model is damaged or cut off: its checksum is wrong")
	}
	line, weights, found := bytes.Cut(content[len(magic):], []byte("\n"))
	if !found || len(line) > maxHeader {
		return nil, errors.New("the model has no header")
	}
	var h fileHeader
	if err := json.Unmarshal(line, &h); err != nil {
		return nil, fmt.Errorf("the header of the model: %w", err)
	}
	return h.model(weights)
}

// model of a header and its weights.
func (h fileHeader) model(weights []byte) (*Model, error) {
	switch {
	case h.Bits < minBits || h.Bits > maxBits:
		return nil, fmt.Errorf("a model of 2^%d weights, not 2^%d to 2^%d", h.Bits, minBits, maxBits)
	case len(weights) != 2<<h.Bits:
		return nil, fmt.Errorf("%d octets of weights, not %d", len(weights), 2<<h.Bits)
	case h.Recipe == 0 || h.Recipe > allKinds:
		return nil, fmt.Errorf("tokens of kinds that are not known here: %d", h.Recipe)
	case !h.Curve.usable() || !h.Words.usable() || math.Abs(h.Bias) > 1e6 || math.Abs(h.SignBias) > 1e3 || h.Scale <= 0 || h.Scale > 1e3:
		return nil, errors.New("numbers in the header of the model are out of their ranges")
	}
	m := &Model{Recipe: h.Recipe, Trained: h.Trained, Spam: h.Spam, Ham: h.Ham, bits: h.Bits, bias: h.Bias, words: h.Words, curve: h.Curve}
	m.signs.bias = h.SignBias
	for id := range m.signs.each {
		weight, known := h.Signs[signs[id].name]
		if !known || math.Abs(weight) > 1e3 {
			return nil, fmt.Errorf("the model has no weight for the sign %q, or one out of range: train again", signs[id].name)
		}
		m.signs.each[id] = weight
	}
	m.weights = make([]float32, 1<<h.Bits)
	for i := range m.weights {
		m.weights[i] = float32(float64(int16(binary.LittleEndian.Uint16(weights[2*i:]))) * h.Scale)
	}
	return m, nil
}

func (c curve) usable() bool {
	return c.Slope >= leastSlope && c.Slope <= 1e6 && math.Abs(c.Offset) <= 1e6
}
