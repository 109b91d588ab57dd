package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/spf13/cobra"
)

// imageTags are the images that every cluster brings along.
var imageTags = map[string]string{
	"pause":                  "1",
	"busybox":                "1",
	"coredns":                "1.15.0",
	"local-path-provisioner": "0.0.30",
}

// imageCommand is used by `build`: the archive is made once and imported by every start.
func imageCommand() *cobra.Command {
	to, from := "", ""
	command := &cobra.Command{
		Use:    "images",
		Short:  "Pack the images that every cluster brings along; used by build",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return packImages(from, to)
		},
	}
	command.Flags().StringVar(&from, "from", ".", "folder with the programs")
	command.Flags().StringVar(&to, "to", "images", "folder for the archives")
	return command
}

// packImages writes one archive for each image. Equal programs give equal bytes.
func packImages(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for program, tag := range imageTags {
		image, err := packImage(from, program)
		if err != nil {
			return fmt.Errorf("pack the image of %s: %w", program, err)
		}
		reference, err := name.NewTag(imagePrefix + "/" + program + ":" + tag)
		if err != nil {
			return err
		}
		if err := tarball.WriteToFile(filepath.Join(to, program+".tar"), reference, image); err != nil {
			return fmt.Errorf("write the image of %s: %w", program, err)
		}
	}
	return nil
}

func packImage(from, program string) (v1.Image, error) {
	content, err := os.ReadFile(filepath.Join(from, program))
	if err != nil {
		return nil, err
	}
	files := newLayer()
	files.folder("tmp", 0o1777)
	files.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/:/bin/sh\nnonroot:x:65532:65532:nonroot:/:/bin/sh\n"))
	files.file("etc/group", 0o644, []byte("root:x:0:\nnonroot:x:65532:\n"))
	files.file("bin/"+program, 0o755, content)
	config := v1.Config{Env: []string{"PATH=/bin"}, WorkingDir: "/", Entrypoint: []string{"/bin/" + program}}
	if program == "busybox" {
		config.Entrypoint, config.Cmd = nil, []string{"sh"}
		applets, err := exec.Command(filepath.Join(from, program), "--list").Output()
		if err != nil {
			return nil, fmt.Errorf("list the applets: %w", err)
		}
		for _, applet := range strings.Fields(string(applets)) {
			if applet != "busybox" {
				files.link("bin/"+applet, "busybox")
			}
		}
	}
	bytesOfLayer, err := files.bytes()
	if err != nil {
		return nil, err
	}
	// Not compressed: it is written once and read at every start, on the same machine.
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(bytesOfLayer)), nil
	}, tarball.WithCompression(compression.None))
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	configFile, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	configFile = configFile.DeepCopy()
	configFile.Architecture, configFile.OS, configFile.Config = runtime.GOARCH, "linux", config
	return mutate.ConfigFile(image, configFile)
}

// layer is a tar file whose entries carry no time and no owner.
type layer struct {
	buffer  bytes.Buffer
	writer  *tar.Writer
	folders []string
	err     error
}

func newLayer() *layer {
	l := &layer{}
	l.writer = tar.NewWriter(&l.buffer)
	return l
}

func (l *layer) entry(header tar.Header, content []byte) {
	if l.err != nil {
		return
	}
	header.ModTime = time.Unix(0, 0)
	header.Size = int64(len(content))
	if l.err = l.writer.WriteHeader(&header); l.err == nil {
		_, l.err = l.writer.Write(content)
	}
}

func (l *layer) folder(path string, mode int64) {
	if !slices.Contains(l.folders, path) {
		l.folders = append(l.folders, path)
		l.entry(tar.Header{Typeflag: tar.TypeDir, Name: path + "/", Mode: mode}, nil)
	}
}

func (l *layer) file(name string, mode int64, content []byte) {
	l.folder(path.Dir(name), 0o755)
	l.entry(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, content)
}

func (l *layer) link(name, target string) {
	l.entry(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

func (l *layer) bytes() ([]byte, error) {
	if l.err == nil {
		l.err = l.writer.Close()
	}
	return l.buffer.Bytes(), l.err
}

// importImages imports the images that every cluster brings along, as soon as containerd answers.
func importImages(ctx context.Context, state State, record Record) error {
	err := poll(ctx, 30*time.Second, "containerd; see "+state.log("containerd"), func() (bool, error) {
		return accepts("unix", state.containerdSocket()), nil
	})
	if err != nil {
		return err
	}
	for _, program := range []string{"pause", "busybox", "coredns", "local-path-provisioner"} {
		if _, err := ctr(ctx, state, "images", "import", filepath.Join(record.Bin, "images", program+".tar")); err != nil {
			return fmt.Errorf("import the image of %s: %w", program, err)
		}
	}
	return nil
}

// load imports image archives, and names each image by its digest too, so that
// pods may ask for it either way.
func load(ctx context.Context, state State, log io.Writer, files ...string) error {
	for _, file := range files {
		if _, err := ctr(ctx, state, "images", "import", file); err != nil {
			return fmt.Errorf("import %s: %w", file, err)
		}
		fmt.Fprintf(log, "imported %s\n", file)
	}
	list, err := ctr(ctx, state, "images", "ls")
	if err != nil {
		return fmt.Errorf("list the images: %w", err)
	}
	for _, pair := range missingDigestNames(list) {
		if _, err := ctr(ctx, state, "images", "tag", pair[0], pair[1]); err != nil {
			return fmt.Errorf("name %s by its digest: %w", pair[0], err)
		}
	}
	return nil
}

// missingDigestNames reads containerd's table of images and pairs each image's
// name with the name by digest that it lacks.
func missingDigestNames(list string) (pairs [][2]string) {
	known := map[string]string{}
	for _, line := range strings.Split(list, "\n") {
		fields := strings.Fields(line)
		if len(fields) >= 3 && strings.HasPrefix(fields[2], "sha256:") {
			known[fields[0]] = fields[2]
		}
	}
	for image, digest := range known {
		slash, colon := strings.LastIndex(image, "/"), strings.LastIndex(image, ":")
		if strings.Contains(image, "@") || colon < slash || strings.HasPrefix(image, "sha256:") {
			continue
		}
		byDigest := image[:colon] + "@" + digest
		if _, exists := known[byDigest]; !exists {
			pairs = append(pairs, [2]string{image, byDigest})
		}
	}
	slices.SortFunc(pairs, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	return pairs
}

// ctr runs containerd's own client against the cluster's containerd.
func ctr(ctx context.Context, state State, arguments ...string) (string, error) {
	arguments = append([]string{"--address", state.containerdSocket(), "--namespace", "k8s.io"}, arguments...)
	output, err := exec.CommandContext(ctx, state.path("bin", "ctr"), arguments...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("ctr %s: %w: %s", strings.Join(arguments, " "), err, strings.TrimSpace(string(output)))
	}
	return string(output), nil
}
