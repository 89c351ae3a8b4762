package testserver

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDockerImage: the image that docker-image.sh makes for all kinds of servers has each package
// that servers.sh installs for one.
func TestDockerImage(t *testing.T) {
	servers, err := os.ReadFile("servers.sh")
	require.NoError(t, err)
	image, err := os.ReadFile("docker-image.sh")
	require.NoError(t, err)
	_, packages, _ := strings.Cut(string(image), "apt-get install")
	packages, _, _ = strings.Cut(packages, ">/dev/null")

	found := 0
	for _, need := range regexp.MustCompile(`(?ms)^need_\w+\(\) \{.*?^\}`).FindAllString(string(servers), -1) {
		install := regexp.MustCompile(`\twant "[^"]*" \S+ (.*)`).FindStringSubmatch(need)
		if !strings.Contains(need, "docker_has") || install == nil || install[1] == "npm" { // the image has what npm fetches
			continue
		}
		for _, pkg := range strings.Fields(install[1]) {
			found++
			require.Contains(t, strings.Fields(packages), pkg)
		}
	}
	require.NotZero(t, found)
}
