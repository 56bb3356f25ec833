//! The binary: parse the arguments, run the command, print the error, set the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = ravelin::cli::parse();
    ravelin::cli::exit_code(ravelin::cli::run(cli))
}
