package main

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// An archive is an OCI image layout in a tar file, plus the `manifest.json` of `docker save` beside it:
// containerd (and so kind and k3d) reads the layout and keeps the manifest's digest, crane and Docker read either.

// writeArchive writes the image under all its names and returns the manifest's digest.
func writeArchive(image v1.Image, names []string, out, scratch string) (v1.Hash, error) {
	digest, err := image.Digest()
	if err != nil {
		return v1.Hash{}, fmt.Errorf("failed to compute the image's digest: %w", err)
	}
	var references []string
	for _, template := range names {
		reference, err := name.NewTag(strings.ReplaceAll(template, "{digest}", digest.Hex[:12]), name.StrictValidation)
		if err != nil {
			return v1.Hash{}, fmt.Errorf("%q is no image name with a tag: %w", template, err)
		}
		references = append(references, reference.Name())
	}
	if err := writeLayout(image, references, scratch); err != nil {
		return v1.Hash{}, fmt.Errorf("failed to write the image's layout: %w", err)
	}
	if err := writeDockerManifest(image, references, scratch); err != nil {
		return v1.Hash{}, fmt.Errorf("failed to write manifest.json: %w", err)
	}
	if err := archiveFolder(scratch, out); err != nil {
		return v1.Hash{}, fmt.Errorf("failed to write the archive %q: %w", out, err)
	}
	return digest, nil
}

func writeLayout(image v1.Image, references []string, folder string) error {
	target, err := layout.Write(folder, empty.Index)
	if err != nil {
		return err
	}
	for _, reference := range references {
		tag := reference[strings.LastIndex(reference, ":")+1:]
		annotations := layout.WithAnnotations(map[string]string{
			"io.containerd.image.name":          reference,
			"org.opencontainers.image.ref.name": tag,
		})
		if err := target.AppendImage(image, annotations); err != nil {
			return err
		}
	}
	return nil
}

func writeDockerManifest(image v1.Image, references []string, folder string) error {
	manifest, err := image.Manifest()
	if err != nil {
		return err
	}
	blob := func(digest v1.Hash) string { return path.Join("blobs", digest.Algorithm, digest.Hex) }
	described := tarball.Descriptor{Config: blob(manifest.Config.Digest), RepoTags: references}
	for _, layer := range manifest.Layers {
		described.Layers = append(described.Layers, blob(layer.Digest))
	}
	text, err := json.Marshal(tarball.Manifest{described})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, "manifest.json"), text, 0o644)
}

// archiveFolder writes beside the target and renames, so that a stopped build leaves no half archive.
func archiveFolder(folder, out string) error {
	unfinished := out + ".partial"
	file, err := os.Create(unfinished)
	if err != nil {
		return err
	}
	defer file.Close()
	archive := tar.NewWriter(file)
	err = filepath.WalkDir(folder, func(found string, item fs.DirEntry, err error) error {
		if err != nil || item.IsDir() {
			return err
		}
		relative, err := filepath.Rel(folder, found)
		if err != nil {
			return err
		}
		return writeEntry(archive, entry{path: "/" + filepath.ToSlash(relative), mode: 0o644, source: found})
	})
	if err != nil {
		return err
	}
	if err := archive.Close(); err != nil {
		return err
	}
	return os.Rename(unfinished, out)
}

// openArchive unpacks an archive that `pack` wrote into a folder and returns the one image in it.
func openArchive(archive, folder string) (v1.Image, error) {
	if err := unpackArchive(archive, folder); err != nil {
		return nil, fmt.Errorf("failed to unpack the archive %q: %w", archive, err)
	}
	index, err := layout.ImageIndexFromPath(folder)
	if err != nil {
		return nil, fmt.Errorf("the archive %q holds no OCI image layout: %w", archive, err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("failed to read the index of %q: %w", archive, err)
	}
	if len(manifest.Manifests) == 0 {
		return nil, fmt.Errorf("the archive %q holds no image", archive)
	}
	image, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		return nil, fmt.Errorf("failed to read the image in %q: %w", archive, err)
	}
	return image, nil
}

// unpackArchive stays inside the folder whatever the names in the archive say: os.Root refuses the rest.
func unpackArchive(archive, folder string) error {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return err
	}
	defer root.Close()
	file, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer file.Close()
	for reader := tar.NewReader(file); ; {
		header, err := reader.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		if err := root.MkdirAll(path.Dir(header.Name), 0o755); err != nil {
			return err
		}
		out, err := root.Create(header.Name)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, reader)
		if closed := out.Close(); err == nil {
			err = closed
		}
		if err != nil {
			return err
		}
	}
}
