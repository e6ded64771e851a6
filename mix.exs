defmodule Codex.Files.MixProject do
  use Mix.Project

  @version "0.1.0"

  def project do
    [
      app: :codex_files,
      version: @version,
      elixir: "~> 1.14",
      elixirc_paths: elixirc_paths(Mix.env()),
      compilers: Mix.compilers() ++ [:codex_files],
      start_permanent: Mix.env() == :prod,
      deps: deps(Mix.env()),
      name: "codex_files",
      description:
        "Stages file attachments for the Codex SDK: private, deduplicated copies with a time to live",
      package: package(),
      docs: docs()
    ]
  end

  def application do
    [mod: {Codex.Files.Application, []}, extra_applications: [:logger, :crypto]]
  end

  defp elixirc_paths(:test), do: ["lib", "test/support"]
  defp elixirc_paths(_env), do: ["lib"]

  # Mix wants Hex as soon as one Hex package is listed, be it for another environment only.
  # Nobody needs Hex to build, run or test this library, so the list is empty elsewhere.
  defp deps(:docs), do: [{:ex_doc, "~> 0.34", runtime: false}]
  defp deps(_env), do: []

  defp package do
    [
      licenses: ["MIT"],
      links: %{"Codex" => "https://github.com/openai/codex"},
      # The native library is built where it is used: the Rust sources and the lock file belong to the package,
      # and what the manifests of the crates name.
      files: ~w(lib mix.exs Cargo.toml Cargo.lock
           native/codex_files/Cargo.toml native/codex_files/src native/codex_files/benches
           native/codex_files_nif/Cargo.toml native/codex_files_nif/build.rs
           native/codex_files_nif/src native/codex_files_nif/examples
           README.md CHANGELOG.md LICENSE THIRD_PARTY_LICENSES.md)
    ]
  end

  defp docs do
    [
      main: "readme",
      extras: [
        "README.md",
        "guides/usage.livemd",
        "guides/with_the_sdk.md",
        "guides/moving_over.md",
        "guides/configuration.md",
        "guides/registries.md",
        "guides/telemetry_and_metrics.md",
        "guides/deployment.md",
        "guides/in_production.md",
        "guides/guarantees.md",
        {"bench/README.md", filename: "figures"},
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "LICENSE"
      ],
      # The README shows the chart.
      assets: %{"bench/results" => "bench/results"},
      groups_for_extras: [Guides: ~r"guides/"],
      groups_for_modules: [
        "Staging files": [Codex.Files, Codex.Files.Attachment],
        "The registry": [Codex.Files.Registry],
        "Mix compilers": [Mix.Tasks.Compile.CodexFiles, Mix.Tasks.Compile.CodexFilesSdk]
      ]
    ]
  end
end
