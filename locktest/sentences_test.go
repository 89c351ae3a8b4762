package locktest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// contract are the texts that a store has to keep: the comments in lock.go of the types
// that a store sees, one for each paragraph and each point of a list. That of a field is
// behind its name.
func contract(t *testing.T) (texts []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../lock.go", nil, parser.ParseComments)
	require.NoError(t, err)
	add := func(name string, doc *ast.CommentGroup) {
		for _, text := range regexp.MustCompile(`\n\n|(?m)^ *- `).Split(doc.Text(), -1) {
			texts = append(texts, name+strings.Join(strings.Fields(text), " "))
		}
	}
	for _, decl := range file.Decls {
		types, ok := decl.(*ast.GenDecl)
		if !ok || types.Tok != token.TYPE {
			continue
		}
		add("", types.Doc)
		ast.Inspect(types, func(n ast.Node) bool {
			if f, ok := n.(*ast.Field); ok && len(f.Names) > 0 {
				add("", f.Doc)
				add(types.Specs[0].(*ast.TypeSpec).Name.Name+"."+f.Names[0].Name+": ", f.Comment)
			}
			return true
		})
	}
	return texts
}

// wholeSentences reports whether text has s, from the beginning of a sentence to the end
// of one.
func wholeSentences(text, s string) bool {
	i := strings.Index(text, s)
	if i < 0 {
		return false
	}
	rest := text[i+len(s):]
	return (i == 0 || strings.HasSuffix(text[:i], ". ")) && (rest == "" || strings.HasSuffix(s, ".") && rest[0] == ' ')
}

// TestSentencesAreTheContracts: what a failure says is the contract's is a run of whole
// sentences of lock.go.
func TestSentencesAreTheContracts(t *testing.T) {
	t.Parallel()
	texts := contract(t)
	require.Contains(t, texts, "Capabilities.FIFO: waiters are served in the order of arrival")
	sentences := map[string]string{}
	for _, c := range allCases() {
		sentences[c.sentence] = c.path
	}
	for sentence, path := range sentences {
		found := false
		for _, text := range texts {
			found = found || wholeSentences(text, sentence)
		}
		assert.True(t, found, "%s, and maybe others: lock.go does not say %q", path, sentence)
	}
}

func TestWholeSentences(t *testing.T) {
	t.Parallel()
	const text = "One is. Two is, too. Three."
	for s, want := range map[string]bool{
		"One is.": true, "Two is, too.": true, "One is. Two is, too.": true, "Three.": true, text: true,
		"One": false, "is.": false, "Two is": false, "Three": false, "One is. Three.": false,
	} {
		assert.Equal(t, want, wholeSentences(text, s), s)
	}
}
