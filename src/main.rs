//! The `reflinkd` program; everything is in the library.

fn main() -> std::process::ExitCode {
    reflinkd::cli::main()
}
