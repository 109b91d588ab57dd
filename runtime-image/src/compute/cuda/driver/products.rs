//! Large products by cuBLASLt. The algorithm for a shape is asked for once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys as lt;
use cudarc::driver::result as driver;
use cudarc::driver::sys;

use super::plain;
use crate::compute::cuda::card::{CardError, Gemm, Number};

/// Bytes that an algorithm may take beside.
const WORKSPACE: usize = 32 << 20;

/// What an algorithm depends on, beside addresses that are multiples of `card::ALIGNMENT`: as cuBLASLt takes for granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    number: Number,
    rows: usize,
    outputs: usize,
    inputs: usize,
    stride: usize,
}

/// A shape's descriptions and algorithm.
struct Chosen {
    product: lt::cublasLtMatmulDesc_t,
    matrix: lt::cublasLtMatrixLayout_t,
    input: lt::cublasLtMatrixLayout_t,
    out: lt::cublasLtMatrixLayout_t,
    algorithm: lt::cublasLtMatmulAlgo_t,
}

pub(super) struct Products {
    handle: lt::cublasLtHandle_t,
    stream: sys::CUstream,
    workspace: sys::CUdeviceptr,
    /// None where there is no algorithm.
    chosen: Mutex<HashMap<Shape, Option<Chosen>>>,
}

/// What cuBLASLt gives; none where it does not support such a product.
fn supported<T>(outcome: Result<T, CublasError>, shape: Shape) -> Result<Option<T>, CardError> {
    use lt::cublasStatus_t as Status;
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(CublasError(Status::CUBLAS_STATUS_NOT_SUPPORTED)) => {
            tracing::warn!(
                ?shape,
                "cuBLASLt does not support a product; own kernels compute it"
            );
            Ok(None)
        }
        Err(CublasError(Status::CUBLAS_STATUS_ALLOC_FAILED)) => Err(CardError::Memory { asked: 0 }),
        Err(CublasError(status)) => Err(CardError::Failed(format!(
            "cuBLASLt: {status:?} for {shape:?}"
        ))),
    }
}

impl Products {
    /// For a card whose context is bound.
    pub(super) fn new(stream: sys::CUstream) -> Result<Self, String> {
        // SAFETY: looks for a library, and loads it where it is.
        if !unsafe { lt::is_culib_present() } {
            return Err("the container has no libcublasLt.so.13".to_owned());
        }
        let handle = result::create_handle()
            .map_err(|error| format!("cuBLASLt does not start: {:?}", error.0))?;
        // SAFETY: cuBLASLt writes it before it reads it.
        let workspace = unsafe { driver::malloc_sync(WORKSPACE) };
        Ok(Self {
            handle,
            stream,
            workspace: workspace.map_err(|error| plain(error).to_string())?,
            chosen: Mutex::default(),
        })
    }

    /// False where cuBLASLt does not support such a product.
    pub(super) fn multiply(&self, gemm: &Gemm) -> Result<bool, CardError> {
        let shape = Shape {
            number: gemm.number,
            rows: gemm.rows,
            outputs: gemm.outputs,
            inputs: gemm.inputs,
            stride: gemm.stride,
        };
        let mut all = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        let known = match all.entry(shape) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(supported(self.choose(shape), shape)?),
        };
        let Some(chosen) = known else {
            return Ok(false);
        };
        let (one, none) = (1_f32, 0_f32);
        let pointer = |address: u64| address as *const c_void;
        let out = gemm.out.0 as *mut c_void;
        // SAFETY: the descriptions live with `self`, callers name room of this card for all three.
        let asked = unsafe {
            result::matmul(
                self.handle,
                chosen.product,
                std::ptr::from_ref(&one).cast(),
                std::ptr::from_ref(&none).cast(),
                pointer(gemm.matrix.0),
                chosen.matrix,
                pointer(gemm.input.0),
                chosen.input,
                out.cast_const(),
                chosen.out,
                out,
                chosen.out,
                &raw const chosen.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                self.stream.cast(),
            )
        };
        let done = supported(asked, shape)?.is_some();
        if !done {
            *known = None;
        }
        Ok(done)
    }

    /// As cuBLASLt has it, with columns that follow one another: `out^T = matrix * input^T`.
    fn choose(&self, shape: Shape) -> Result<Chosen, CublasError> {
        let number = match shape.number {
            Number::F32 => lt::cudaDataType::CUDA_R_32F,
            Number::F16 => lt::cudaDataType::CUDA_R_16F,
            Number::Bf16 => lt::cudaDataType::CUDA_R_16BF,
        };
        let size = |size: usize| size as u64;
        let stride = |stride: usize| i64::try_from(stride).unwrap_or(i64::MAX);
        let layout = |number, columns: usize, rows: usize, step: usize| {
            result::create_matrix_layout(number, size(columns), size(rows), stride(step))
        };
        // Sums in f32; numbers of f32 are not rounded to TF32.
        let product = result::create_matmul_desc(
            lt::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            lt::cudaDataType::CUDA_R_32F,
        )?;
        // CUBLAS_OP_T, which cuBLASLt has from cuBLAS.
        let transposed = 1_i32;
        // SAFETY: the description was just made, and the number is read at once.
        unsafe {
            result::set_matmul_desc_attribute(
                product,
                lt::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                std::ptr::from_ref(&transposed).cast(),
                size_of_val(&transposed),
            )?;
        }
        let matrix = layout(number, shape.inputs, shape.outputs, shape.inputs)?;
        let input = layout(number, shape.inputs, shape.rows, shape.inputs)?;
        let sums = lt::cudaDataType::CUDA_R_32F;
        let out = layout(sums, shape.outputs, shape.rows, shape.stride)?;
        let wishes = result::create_matmul_pref()?;
        let workspace = WORKSPACE;
        // SAFETY: everything was just made and lives until the calls return.
        let found = unsafe {
            result::set_matmul_pref_attribute(
                wishes,
                lt::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                std::ptr::from_ref(&workspace).cast(),
                size_of_val(&workspace),
            )?;
            let found = result::get_matmul_algo_heuristic(
                self.handle,
                product,
                matrix,
                input,
                out,
                out,
                wishes,
            );
            result::destroy_matmul_pref(wishes)?;
            found?
        };
        Ok(Chosen {
            product,
            matrix,
            input,
            out,
            algorithm: found.algo,
        })
    }
}
