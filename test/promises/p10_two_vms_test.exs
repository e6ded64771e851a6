defmodule Codex.Files.P10TwoVMsTest do
  @moduledoc """
  P10: two VMs may share a staging directory: neither's start, sweep nor reset removes a file that
  the other holds. Dead VMs' files go at the next start, in every directory that it uses.
  """

  use Codex.Files.StagingCase, async: false

  @moduletag :user

  alias Codex.Files.ChildVM

  setup %{folder: folder} do
    # One content that both stage, and one for each.
    for name <- ["both", "mine", "theirs"], into: %{} do
      {String.to_atom(name), write(folder, "source/#{name}", "content of #{name}")}
    end
  end

  defp stage_there(vm, source, opts \\ []) do
    {:ok, attachment} =
      ChildVM.eval(vm, quote(do: Codex.Files.stage(unquote(source), unquote(opts))))

    attachment
  end

  defp stage_here(source, opts \\ []) do
    {:ok, attachment} = Codex.Files.stage(source, opts)
    attachment
  end

  defp list_there(vm), do: ChildVM.eval(vm, quote(do: Codex.Files.list_staged()))

  test "neither's start, cleanup, reset or end takes what the other holds", context do
    vm = ChildVM.start(context.staging_dir)
    theirs = [stage_there(vm, context.both), stage_there(vm, context.theirs, persist: true)]

    for _ <- 1..2 do
      mine = [stage_here(context.both, ttl_ms: 0), stage_here(context.mine)]
      assert_intact(mine ++ theirs)
      assert Codex.Files.force_cleanup() == :ok
      assert_intact(theirs)
      assert Codex.Files.reset!() == :ok
      assert_intact(theirs)
      {:ok, _again} = Codex.Files.stage(context.both)
      kill_default_registry()
      assert Codex.Files.force_cleanup() == :ok
      assert_intact(theirs)
      stop_default_registry()
      assert_intact(theirs)
    end

    assert Enum.sort(list_there(vm)) == Enum.sort(theirs)

    # And the other way round.
    mine = [stage_here(context.both), stage_here(context.mine)]
    stage_there(vm, context.both, ttl_ms: 0)
    assert ChildVM.eval(vm, quote(do: Codex.Files.force_cleanup())) == :ok
    assert_intact(mine)
    assert ChildVM.eval(vm, quote(do: Codex.Files.reset!())) == :ok
    assert_intact(mine)
    stage_there(vm, context.both)
    ChildVM.stop(vm)
    assert_intact(mine)
    assert Enum.sort(Codex.Files.list_staged()) == Enum.sort(mine)
  end

  test "a VM that ends in order takes its files along", context do
    vm = ChildVM.start(context.staging_dir)
    theirs = stage_there(vm, context.theirs)
    ChildVM.stop(vm)
    refute File.exists?(theirs.path)
    assert files_below(context.staging_dir) == []
  end

  test "a dead VM's files go at the next start, and by a reset", context do
    destination = Path.join(context.folder, "destination/copy")

    for remove <- [
          fn ->
            {:ok, _registry} = Registry.ensure_started()
            Codex.Files.force_cleanup()
          end,
          fn ->
            {:ok, _registry} = Registry.ensure_started()
            Codex.Files.reset!()
          end
        ] do
      stop_default_registry()
      vm = ChildVM.start(context.staging_dir)
      theirs = stage_there(vm, context.theirs, persist: true)
      opts = Macro.escape(stage_opts(context.both, destination_path: destination))
      {:ok, elsewhere} = ChildVM.eval(vm, quote(do: Codex.Files.Registry.stage(unquote(opts))))
      ChildVM.kill(vm)
      assert_intact([theirs, elsewhere])

      assert remove.() == :ok
      refute File.exists?(theirs.path)
      refute File.exists?(destination)
      assert Path.wildcard(Path.join(context.staging_dir, "*/*")) == []
    end
  end

  # A host that configures the directory once it knows where its data is to be.
  test "a dead VM's files go when another directory is first used", context do
    [late, destinations] = for name <- ["late", "places"], do: Path.join(context.folder, name)
    elsewhere = fn -> for path <- files_below(destinations), not (path =~ ~r"/\z"), do: path end
    staged = fn -> Path.wildcard(late <> "/codex_files-*/*/*") end

    for round <- 1..4 do
      vm = ChildVM.start(context.staging_dir)
      stage_there(vm, context.theirs)
      ChildVM.eval(vm, quote(do: Application.put_env(:codex_sdk, :staging_dir, unquote(late))))
      theirs = stage_there(vm, context.both)

      opts =
        Macro.escape(
          stage_opts(context.mine, destination_path: Path.join(destinations, "#{round}/copy"))
        )

      {:ok, _copy} = ChildVM.eval(vm, quote(do: Codex.Files.Registry.stage(unquote(opts))))
      eventually(fn -> staged.() == [theirs.path] end)
      eventually(fn -> elsewhere.() == ["#{round}/copy"] end)
      assert_intact([theirs])
      ChildVM.kill(vm)
    end

    # Nor is it the first use that counts, but the dead.
    configure(:staging_dir, late)
    {:ok, _registry} = Registry.ensure_started()
    assert Registry.force_cleanup() == :ok
    assert staged.() == []
    assert elsewhere.() == []
  end

  test "many VMs that start at once leave each other alone", context do
    attachments =
      1..4
      |> Enum.map(fn number ->
        Task.async(fn ->
          vm = ChildVM.start(context.staging_dir)

          attachments =
            for source <- [context.both, write(context.folder, "source/#{number}", "#{number}")],
                do: stage_there(vm, source)

          # Not before all have started.
          receive do: (:go_on -> :ok)
          assert Enum.sort(list_there(vm)) == Enum.sort(attachments)
          assert_intact(attachments)
          ChildVM.kill(vm)
          attachments
        end)
      end)
      |> tap(fn tasks ->
        eventually(fn -> length(Path.wildcard(context.staging_dir <> "/*/*/*")) == 8 end)
        for task <- tasks, do: send(task.pid, :go_on)
      end)
      |> Task.await_many(30_000)

    assert attachments |> Enum.concat() |> Enum.uniq_by(& &1.path) |> length() == 8
  end

  test "so may two registries of one VM", context do
    registry = start_registry()

    {:ok, theirs} =
      GenServer.call(
        registry,
        {:stage, stage_opts(context.both, destination_path: Path.join(context.folder, "copy"))}
      )

    for remove <- [
          &Codex.Files.force_cleanup/0,
          &Codex.Files.reset!/0,
          &stop_default_registry/0
        ] do
      mine = stage_here(context.both, ttl_ms: 0)
      assert remove.() == :ok
      refute File.exists?(mine.path)
      assert_intact([theirs])
    end

    mine = stage_here(context.both)
    assert GenServer.call(registry, {:reset, context.staging_dir}) == :ok
    assert_intact([mine])
    assert GenServer.call(registry, :list) == []
  end
end
