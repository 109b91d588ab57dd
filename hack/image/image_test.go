package main

import (
	"archive/tar"
	"crypto/sha256"
	"debug/elf"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// program is a static program for the architecture of this machine: the packed tool itself, built for the test.
func program(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return self
}

func packed(t *testing.T, source string, extra ...string) (archive string) {
	t.Helper()
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	archive = filepath.Join(t.TempDir(), "image.tar")
	args := append([]string{"pack", "--out", archive, "--name", "chandler.dev/thing:dev-{digest}", "--name", "chandler.dev/thing:1.0",
		"--entrypoint", "/usr/bin/thing", "--label", "org.opencontainers.image.title=thing", "--stored", "--add", source + ":/usr/bin/thing:0755"}, extra...)
	if err := run(args); err != nil {
		t.Fatal(err)
	}
	return archive
}

func opened(t *testing.T, archive string) v1.Image {
	t.Helper()
	image, err := openArchive(archive, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func TestSameInputGivesTheSameBytesWhateverTheDatesOfFiles(t *testing.T) {
	copied := filepath.Join(t.TempDir(), "copy")
	text, err := os.ReadFile(program(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(copied, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(copied, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	sums := map[[32]byte]bool{}
	for _, source := range []string{program(t), copied} {
		bytes, err := os.ReadFile(packed(t, source))
		if err != nil {
			t.Fatal(err)
		}
		sums[sha256.Sum256(bytes)] = true
	}
	if len(sums) != 1 {
		t.Fatalf("two archives of the same input differ: %d different sums", len(sums))
	}
}

func TestArchiveReadsAsDockerArchiveUnderEachName(t *testing.T) {
	archive := packed(t, program(t))
	digest, err := opened(t, archive).Digest()
	if err != nil {
		t.Fatal(err)
	}
	for _, reference := range []string{"chandler.dev/thing:1.0", "chandler.dev/thing:dev-" + digest.Hex[:12]} {
		tag, err := name.NewTag(reference)
		if err != nil {
			t.Fatal(err)
		}
		image, err := tarball.ImageFromPath(archive, &tag)
		if err != nil {
			t.Fatalf("%s: %v", reference, err)
		}
		config, err := image.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if config.Config.User != "65532:65532" || config.Config.Entrypoint[0] != "/usr/bin/thing" || config.Created.Unix() != 1700000000 {
			t.Errorf("%s: wrong configuration: %+v, created %s", reference, config.Config, config.Created)
		}
	}
}

func TestImageHoldsCertificatesUsersAndTheProgram(t *testing.T) {
	found := map[string]string{}
	layers, err := opened(t, packed(t, program(t))).Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range layers {
		content, err := layer.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		for reader := tar.NewReader(content); ; {
			header, err := reader.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if header.Uid != 0 || !header.ModTime.Equal(time.Unix(0, 0)) {
				t.Errorf("%s belongs to %d and is dated %s", header.Name, header.Uid, header.ModTime)
			}
			text, err := io.ReadAll(reader)
			if err != nil {
				t.Fatal(err)
			}
			found["/"+header.Name] = fmt.Sprintf("%o %s", header.Mode, text)
		}
	}
	for path, start := range map[string]string{
		certificatesPath:     "644 -----BEGIN CERTIFICATE-----",
		"/etc/passwd":        "644 root:x:0:0:",
		"/etc/nsswitch.conf": "644 hosts: files dns",
		"/tmp/":              "1777 ",
		"/usr/bin/":          "755 ",
		"/usr/bin/thing":     "755 \x7fELF",
	} {
		if !strings.HasPrefix(found[path], start) {
			t.Errorf("%s starts with %.40q, wanted %q", path, found[path], start)
		}
	}
	if count := strings.Count(found[certificatesPath], "BEGIN CERTIFICATE"); count < 80 {
		t.Errorf("only %d certificates", count)
	}
}

func TestLinksInAFolderStayLinks(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "library.so.1.2"), []byte("code"), 0o644); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"library.so": "library.so.1.2", "absent": "/nowhere"} {
		if err := os.Symlink(target, filepath.Join(folder, link)); err != nil {
			t.Fatal(err)
		}
	}
	linked := filepath.Join(t.TempDir(), "linked")
	if err := os.Symlink(program(t), linked); err != nil {
		t.Fatal(err)
	}
	image := opened(t, packed(t, linked, "--add", folder+":/lib"))
	found := map[string]string{}
	reader := tar.NewReader(mutate.Extract(image))
	for {
		header, err := reader.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		found[strings.TrimPrefix(header.Name, "/")] = string(header.Typeflag) + header.Linkname
	}
	for path, want := range map[string]string{
		"lib/library.so":     "2library.so.1.2",
		"lib/absent":         "2/nowhere",
		"lib/library.so.1.2": "0",
		"usr/bin/thing":      "0",
	} {
		if found[path] != want {
			t.Errorf("%s is %q, wanted %q", path, found[path], want)
		}
	}
}

func TestLayersAreCompressedUnlessToldOtherwise(t *testing.T) {
	weights := filepath.Join(t.TempDir(), "zeros")
	if err := os.WriteFile(weights, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "0")
	recipe, err := parsePack([]string{"--out", "x", "--name", "chandler.dev/thing:1", "--entrypoint", "/thing",
		"--add", program(t) + ":/thing", "--layer", "--add", weights + ":/zeros"})
	if err != nil {
		t.Fatal(err)
	}
	image, err := buildImage(recipe, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Layers) != 3 || manifest.Layers[2].Size > 1<<14 {
		t.Errorf("wanted three layers, the last of them small: %+v", manifest.Layers)
	}
}

func TestStoredLayersHoldWhatTheirMediaTypeSays(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "0")
	recipe, err := parsePack([]string{"--out", "x", "--name", "chandler.dev/thing:1", "--entrypoint", "/thing", "--stored",
		"--add", program(t) + ":/thing"})
	if err != nil {
		t.Fatal(err)
	}
	image, err := buildImage(recipe, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range layers {
		blob, err := layer.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tar.NewReader(blob).Next(); err != nil {
			t.Errorf("a stored layer is no tar archive: %v", err)
		}
	}
}

// loader is what starts dynamic programs of this machine.
func loader(t *testing.T) string {
	t.Helper()
	binary, err := elf.Open("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close()
	for _, header := range binary.Progs {
		if header.Type == elf.PT_INTERP {
			name, err := io.ReadAll(header.Open())
			if err != nil {
				t.Fatal(err)
			}
			return strings.TrimRight(string(name), "\x00")
		}
	}
	t.Fatal("/bin/true has no loader")
	return ""
}

func TestRefusesWhatWouldOnlyFailOnTheNode(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "0")
	text := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	base := []string{"pack", "--out", filepath.Join(t.TempDir(), "image.tar"), "--name", "chandler.dev/thing:1"}
	for _, refused := range []struct {
		says string
		args []string
	}{
		{"nothing was added at the entry point", []string{"--entrypoint", "/usr/bin/thing"}},
		{"failed to read the program", []string{"--entrypoint", "/usr/bin/thing", "--add", text + ":/usr/bin/thing"}},
		{"is built for", []string{"--entrypoint", "/thing", "--arch", "arm64", "--add", program(t) + ":/thing"}},
		{"is not static: it needs /lib", []string{"--entrypoint", "/ls", "--add", "/bin/ls:/ls"}},
		{"needs libc.so.6, which the image does not have", []string{"--entrypoint", "/true", "--add", "/bin/true:/true", "--add", loader(t) + ":" + loader(t)}},
		{"is not SOURCE:/DESTINATION", []string{"--entrypoint", "/ls", "--add", "/bin/ls"}},
		{"no such file", []string{"--entrypoint", "/ls", "--add", "/absent:/ls"}},
	} {
		err := run(append(base[:len(base):len(base)], refused.args...))
		if err == nil || !strings.Contains(err.Error(), refused.says) {
			t.Errorf("wanted an error that says %q, got %v", refused.says, err)
		}
	}
}

func TestPushKeepsTheDigestAndUsesTheLogin(t *testing.T) {
	store := registry.New()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, given := r.BasicAuth(); !given || user != "reader" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, "login needed", http.StatusUnauthorized)
			return
		}
		store.ServeHTTP(w, r)
	}))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	archive := packed(t, program(t))
	login := t.TempDir()
	t.Setenv("DOCKER_CONFIG", login)
	if err := run([]string{"push", "--archive", archive, "--to", host + "/thing:1"}); err == nil || !strings.Contains(err.Error(), "config.json") {
		t.Fatalf("wanted an error that names the login file, got %v", err)
	}
	// cmVhZGVyOnNlY3JldA== is reader:secret.
	if err := os.WriteFile(filepath.Join(login, "config.json"), []byte(`{"auths":{"`+host+`":{"auth":"cmVhZGVyOnNlY3JldA=="}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run([]string{"push", "--archive", archive, "--to", host + "/thing:1"}); err != nil {
		t.Fatal(err)
	}
	wanted, err := opened(t, archive).Digest()
	if err != nil {
		t.Fatal(err)
	}
	reference, err := name.ParseReference(host + "/thing@" + wanted.String())
	if err != nil {
		t.Fatal(err)
	}
	client := remote.WithTransport(loggedIn{http.DefaultTransport})
	if _, err := remote.Head(reference, client); err != nil {
		t.Fatalf("the registry does not know the archive's digest: %v", err)
	}
}

type loggedIn struct{ inner http.RoundTripper }

func (l loggedIn) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.SetBasicAuth("reader", "secret")
	return l.inner.RoundTrip(r)
}

func TestPushSpeaksPlainHTTPToLoopbackOnly(t *testing.T) {
	err := run([]string{"push", "--archive", "unread.tar", "--to", "10.1.2.3:5000/thing:1"})
	if err == nil || !strings.Contains(err.Error(), "without TLS") {
		t.Fatalf("wanted a refusal, got %v", err)
	}
}
