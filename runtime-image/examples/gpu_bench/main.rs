//! Measures the runtime on a card against what the card can do in the same run: `gpu_bench --model FOLDER [FLAGS OF serve]`.
//!
//! The folder holds what `random_mllama` writes for the 11B model, with a tokenizer beside it. Without `--model` it says which
//! card there is. With `--rehearse` a smaller model and any device will do, and what comes is no figure.
//! Ends with 2, and the reason, where no card can be used.

#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a program for people"
)]

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use chandler_runtime::config::{Config, CudaArgs, Device, ServeArgs};
use chandler_runtime::device::{self, Place};
use chandler_runtime::serve;
use chandler_runtime::weights::folder;
use clap::Parser;

use asking::Asker;
use checkpoint::Sizes;
use limits::Limits;
use work::Work;

mod asking;
#[path = "../random_mllama/checkpoint.rs"]
#[expect(dead_code, reason = "only sizes are looked at here")]
mod checkpoint;
mod limits;
mod work;

/// Tokens before those that are timed.
const CONTEXT: usize = 1_024;
/// Tokens of the shorter and of the longer answer, whose difference is timed.
const ANSWERS: [usize; 2] = [17, 145];
/// Pictures whose encoding is timed.
const PICTURES: usize = 4;
/// Answers at once.
const MOST: usize = 64;

#[derive(Parser)]
struct Arguments {
    /// Try the program itself: with less to do, and without figures.
    #[arg(long)]
    rehearse: bool,
    #[command(flatten)]
    serve: ServeArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("gpu_bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<ExitCode, Box<dyn Error>> {
    if std::env::args().len() == 1 {
        return Ok(tell_card());
    }
    // What `serve` needs and a bench does not: a name, and as many sequences as are measured at most.
    let usual = [
        "--served-name=bench".to_owned(),
        format!("--max-sequences={MOST}"),
    ];
    let mut given = std::env::args();
    let program = given.next();
    let arguments = Arguments::parse_from(program.into_iter().chain(usual).chain(given));
    let settled = device::settle(arguments.serve.device, &arguments.serve.cuda);
    if !arguments.rehearse && settled.place.device() != Device::Cuda {
        eprintln!("gpu_bench: {}", obstacle(settled.obstacle));
        return Ok(ExitCode::from(2));
    }
    Bench::start(&arguments, settled.place)?.measure().await?;
    Ok(ExitCode::SUCCESS)
}

fn obstacle(told: Option<String>) -> String {
    let told = told.unwrap_or_else(|| "--device is not cuda".to_owned());
    format!("no GPU to measure on: {told}")
}

/// Which card there is.
fn tell_card() -> ExitCode {
    let settled = device::settle(Device::Cuda, &CudaArgs::default());
    let Place::Card(card) = settled.place else {
        eprintln!("gpu_bench: {}", obstacle(settled.obstacle));
        return ExitCode::from(2);
    };
    match card.memory() {
        Ok(memory) => {
            let facts = card.facts();
            println!(
                "{}: {} multiprocessors, {} of {} MiB free",
                facts.name,
                facts.processors,
                memory.free >> 20,
                memory.total >> 20
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("gpu_bench: {}", obstacle(Some(error.to_string())));
            ExitCode::from(2)
        }
    }
}

struct Bench {
    work: Work,
    limits: Option<Limits>,
    asker: Asker,
    rehearses: bool,
}

impl Bench {
    /// Measures the card and loads the model.
    fn start(arguments: &Arguments, place: Place) -> Result<Self, Box<dyn Error>> {
        let config = Config::from(&arguments.serve);
        let model: PathBuf = config.model.clone();
        let rehearses = arguments.rehearse;
        let limits = match &place {
            Place::Card(card) => Some(limits::measure(card)?),
            Place::Cpu => None,
        };
        let told = |name: &str, value: f64, unit: &str| tell(rehearses, name, value, unit);
        if let Some(limits) = limits {
            told("gpu_memory_gbs", limits.memory / 1e9, "GB/s");
            told("gpu_dense_tflops", limits.dense / 1e12, "TFLOP/s");
            told("gpu_pinned_copy_gbs", limits.pinned / 1e9, "GB/s");
        }
        let read = limits::read_speed(&model)?;
        told("gpu_read_gbs", read / 1e9, "GB/s");
        let begin = Instant::now();
        let loaded = serve::load_at(&config, &place)?;
        let speed = folder::tensor_bytes(&model) as f64 / begin.elapsed().as_secs_f64();
        told("gpu_load_gbs", speed / 1e9, "GB/s");
        if let Some(limits) = limits {
            told("gpu_load_share", speed / limits.pinned.min(read), "");
        }
        Ok(Self {
            work: Work::new(&Sizes::published_11b()),
            limits,
            asker: Asker::start(loaded, &config)?,
            rehearses,
        })
    }

    async fn measure(&mut self) -> Result<(), Box<dyn Error>> {
        self.asker.warm().await?;
        self.decode("gpu_decode_text_b1", 1, false).await?;
        self.decode("gpu_decode_image_b1", 1, true).await?;
        let batches: &[usize] = if self.rehearses { &[2] } else { &[16, MOST] };
        for answers in batches {
            self.decode(&format!("gpu_decode_b{answers}"), *answers, true)
                .await?;
        }
        let prompts = if self.rehearses {
            [64, 128, 256]
        } else {
            [2_048, 8_192, 32_768]
        };
        let mut shares = Vec::new();
        for tokens in prompts {
            let seconds = self.asker.prefill(tokens).await?;
            let operations = self.work.prefill_operations(tokens as f64);
            let name = format!("gpu_prefill_{}k", tokens / 1_024);
            self.tell(&format!("{name}_tokens_s"), tokens as f64 / seconds, "");
            shares.push(self.of_dense(operations, seconds));
        }
        if let [Some(short), Some(middle), Some(long)] = shares[..] {
            self.tell("gpu_prefill_2k_8k_of_dense_peak", short.min(middle), "");
            self.tell("gpu_prefill_32k_of_dense_peak", long, "");
        }
        let pictures = if self.rehearses { 1 } else { PICTURES };
        let seconds = self.asker.encode(pictures).await?;
        self.tell("gpu_image_encode_ms", seconds * 1e3, "ms");
        if let Some(share) = self.of_dense(self.work.picture_operations(), seconds) {
            self.tell("gpu_image_encode_of_dense_peak", share, "");
        }
        Ok(())
    }

    /// Times a token of each of so many answers.
    async fn decode(
        &mut self,
        name: &str,
        answers: usize,
        looks: bool,
    ) -> Result<(), Box<dyn Error>> {
        let [short, long] = if self.rehearses { [3, 7] } else { ANSWERS };
        let context = if self.rehearses { 32 } else { CONTEXT };
        let seconds = self
            .asker
            .decode(answers, context, [short, long], looks)
            .await?;
        self.tell(&format!("{name}_tokens_s"), answers as f64 / seconds, "");
        if let Some(limits) = self.limits {
            let context = (context + (short + long) / 2) as f64;
            let bytes = self.work.decode_bytes(answers as f64, context, looks);
            let share = bytes / limits.memory / seconds;
            self.tell(&format!("{name}_of_roofline"), share, "");
        }
        Ok(())
    }

    fn of_dense(&self, operations: f64, seconds: f64) -> Option<f64> {
        self.limits
            .map(|limits| operations / limits.dense / seconds)
    }

    fn tell(&self, name: &str, value: f64, unit: &str) {
        tell(self.rehearses, name, value, unit);
    }
}

fn tell(rehearses: bool, name: &str, value: f64, unit: &str) {
    let what = if rehearses { "rehearsed" } else { "figure" };
    println!("{what} {name} {value:.3} {unit}");
}
