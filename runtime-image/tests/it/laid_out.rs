//! The tiny model as `check` wants it.

use std::path::Path;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::golden::fixture;

/// Lays the fixture out as `check` wants it; one logit of the case `raw_text` is off by `spoilt`.
pub(crate) fn lay_out(folder: &Path, spoilt: f32) {
    std::os::unix::fs::symlink(fixture("model"), folder.join("model")).unwrap();
    std::fs::copy(fixture("cases.json"), folder.join("cases.json")).unwrap();
    std::fs::create_dir(folder.join("cases")).unwrap();
    let golden = std::fs::read(fixture("decode_logits.safetensors")).unwrap();
    for (name, tensor) in SafeTensors::deserialize(&golden).unwrap().tensors() {
        let mut bytes = tensor.data().to_vec();
        if name == "raw_text" {
            let value = f32::from_le_bytes(bytes[400..404].try_into().unwrap()) + spoilt;
            bytes[400..404].copy_from_slice(&value.to_le_bytes());
        }
        let view = TensorView::new(Dtype::F32, tensor.shape().to_vec(), &bytes).unwrap();
        let path = folder.join("cases").join(format!("{name}.safetensors"));
        let file = safetensors::serialize([("decode_logits", view)], None).unwrap();
        std::fs::write(path, file).unwrap();
    }
}
