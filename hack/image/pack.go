package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// recipe is what the command line of `pack` means.
type recipe struct {
	out         string
	names       []string
	arch        string
	entrypoint  string
	user        string
	environment []string
	labels      map[string]string
	layers      [][]addition
	compressed  bool
	created     time.Time
}

// addition is one `--add`: a file or folder of this machine and its place in the image.
type addition struct {
	source      string
	destination string
	mode        int64 // 0: 0755 for what is executable here, else 0644
}

func pack(args []string) error {
	recipe, err := parsePack(args)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "chandler-image-")
	if err != nil {
		return fmt.Errorf("failed to make a scratch folder: %w", err)
	}
	defer os.RemoveAll(scratch)
	image, err := buildImage(recipe, scratch)
	if err != nil {
		return err
	}
	digest, err := writeArchive(image, recipe.names, recipe.out, filepath.Join(scratch, "layout"))
	if err != nil {
		return err
	}
	size, err := pulledSize(image)
	if err != nil {
		return err
	}
	fmt.Printf("digest=%s\nbytes=%d\n", digest, size)
	return nil
}

func parsePack(args []string) (recipe, error) {
	parsed := recipe{labels: map[string]string{}, layers: [][]addition{nil}, compressed: true}
	flags := flag.NewFlagSet("image pack", flag.ContinueOnError)
	flags.StringVar(&parsed.out, "out", "", "the archive to write")
	flags.StringVar(&parsed.arch, "arch", "amd64", "architecture, as Go names it")
	flags.StringVar(&parsed.entrypoint, "entrypoint", "", "path of the program in the image")
	flags.StringVar(&parsed.user, "user", "65532:65532", "user and group that the program runs as by default")
	flags.Func("name", "full reference of the image; {digest} becomes the first 12 digits of its digest; repeatable", appendTo(&parsed.names))
	flags.Func("env", "KEY=VALUE; repeatable", appendTo(&parsed.environment))
	flags.Func("label", "KEY=VALUE; repeatable", func(text string) error {
		key, value, found := strings.Cut(text, "=")
		if !found {
			return fmt.Errorf("%q is not KEY=VALUE", text)
		}
		parsed.labels[key] = value
		return nil
	})
	flags.BoolFunc("layer", "what is added from here on goes into a layer of its own", func(string) error {
		parsed.layers = append(parsed.layers, nil)
		return nil
	})
	flags.Func("add", "SOURCE:DESTINATION[:OCTAL MODE]; a folder is added with all that is in it; repeatable", func(text string) error {
		added, err := parseAddition(text)
		if err == nil {
			last := len(parsed.layers) - 1
			parsed.layers[last] = append(parsed.layers[last], added)
		}
		return err
	})
	flags.BoolFunc("stored", "leave layers uncompressed: for images that hold little but weights", func(string) error {
		parsed.compressed = false
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return parsed, err
	}
	if flags.NArg() > 0 {
		return parsed, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if parsed.out == "" || len(parsed.names) == 0 || parsed.entrypoint == "" {
		return parsed, errors.New("--out, --name and --entrypoint are needed")
	}
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return parsed, errors.New("SOURCE_DATE_EPOCH must hold the date of the image, in seconds since 1970: the commit's, say")
	}
	parsed.created = time.Unix(seconds, 0).UTC()
	parsed.layers = slices.DeleteFunc(parsed.layers, func(layer []addition) bool { return len(layer) == 0 })
	return parsed, nil
}

func appendTo(list *[]string) func(string) error {
	return func(text string) error {
		*list = append(*list, text)
		return nil
	}
}

func parseAddition(text string) (addition, error) {
	parts := strings.Split(text, ":")
	if len(parts) < 2 || len(parts) > 3 || !strings.HasPrefix(parts[1], "/") {
		return addition{}, fmt.Errorf("%q is not SOURCE:/DESTINATION[:MODE]", text)
	}
	added := addition{source: parts[0], destination: parts[1]}
	if len(parts) == 3 {
		mode, err := strconv.ParseInt(parts[2], 8, 16)
		if err != nil {
			return addition{}, fmt.Errorf("%q is not an octal mode in %q", parts[2], text)
		}
		added.mode = mode
	}
	return added, nil
}

// buildImage puts a base layer (certificates, users, /tmp) below the recipe's own layers.
func buildImage(recipe recipe, scratch string) (v1.Image, error) {
	base, err := baseEntries()
	if err != nil {
		return nil, err
	}
	contents := [][]entry{base}
	for _, additions := range recipe.layers {
		entries, err := collectEntries(additions)
		if err != nil {
			return nil, err
		}
		contents = append(contents, entries)
	}
	if err := checkProgram(recipe, contents); err != nil {
		return nil, err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for index, entries := range contents {
		path := filepath.Join(scratch, fmt.Sprintf("layer-%d.tar", index))
		layer, err := makeLayer(entries, path, recipe.compressed)
		if err != nil {
			return nil, err
		}
		addendum := mutate.Addendum{Layer: layer, History: v1.History{
			Created:   v1.Time{Time: recipe.created},
			CreatedBy: "hack/image pack",
		}}
		if image, err = mutate.Append(image, addendum); err != nil {
			return nil, fmt.Errorf("failed to append a layer: %w", err)
		}
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("failed to read the image's configuration back: %w", err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", recipe.arch
	config.Created = v1.Time{Time: recipe.created}
	config.Config = v1.Config{
		Entrypoint: []string{recipe.entrypoint},
		Env:        append([]string{"PATH=/usr/bin"}, recipe.environment...),
		Labels:     recipe.labels,
		User:       recipe.user,
		WorkingDir: "/",
	}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return nil, fmt.Errorf("failed to set the image's configuration: %w", err)
	}
	return image, nil
}

// pulledSize is what a node downloads in bytes: manifest, configuration and layers as stored in a registry.
func pulledSize(image v1.Image) (int64, error) {
	manifest, err := image.Manifest()
	if err != nil {
		return 0, fmt.Errorf("failed to read the image's manifest back: %w", err)
	}
	size, err := image.Size()
	if err != nil {
		return 0, fmt.Errorf("failed to read the manifest's size: %w", err)
	}
	size += manifest.Config.Size
	for _, layer := range manifest.Layers {
		size += layer.Size
	}
	return size, nil
}
