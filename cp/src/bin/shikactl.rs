//! shikactl: arguments, streams, exit codes.

use std::process::ExitCode;

use clap::Parser;
use shika_cp::ctl::{Arguments, Streams, run};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("Error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (mut input, mut output, mut errors) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let streams = Streams { input: &mut input, output: &mut output, errors: &mut errors };
    match runtime.block_on(run(arguments, streams)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
