//! Temporary entry point.

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = lab::dispatch(&args) {
        return code;
    }
    let r = (|| -> lab::Result<()> {
        let cache = lab::cache::Cache::open()?;
        let progress = lab::progress::Progress::new(cache.root());
        let inputs = lab::up::Inputs { recipes: "fixtures/images".into(), built: "/tmp/built".into() };
        match args[0].as_str() {
            "up" => {
                let prepared = lab::up::prepare(&cache, &inputs, lab::packages::Installing::Allowed, &progress)?;
                let r = lab::up::start(&cache, &prepared, &lab::up::Wanted { name: "default".into(), nodes: 1, orders: lab::supervisor::Orders { life: lab::supervisor::Life::Detached, api_port: 0 } }, &progress)?;
                progress.note(&format!("{}", r.kubeconfig.display()));
            }
            _ => { lab::sweep::down(cache.root(), "default")?; }
        }
        Ok(())
    })();
    if let Err(e) = r { lab::report(&e); return std::process::ExitCode::FAILURE; }
    std::process::ExitCode::SUCCESS
}
