"""Reading a compiled program's text."""

from care_jax.plan import hlo

MODULE = """\
HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(f32[] %x, f32[] %y)
}

%layer (carry: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %gathered = bf16[64,16]{1,0:T(8,128)} all-gather(bf16[8,16]{1,0} %w), channel_id=3, dimensions={0}
  %piece = bf16[16,16]{1,0:T(8,128)} all-gather(bf16[8,16]{1,0} %w), channel_id=3, dimensions={0}
  %start = (f32[8,16], f32[8,16]) all-reduce-start(f32[8,16] %h), to_apply=%add
  ROOT %next = (s32[], f32[8,16]) tuple(%i, %done)
}

%end (carry: (s32[], f32[8,16])) -> pred[] {
  ROOT %less = pred[] compare(s32[] %i, s32[] %n), direction=LT
}

ENTRY %main (a: f32[8,16]) -> f32[8,16] {
  %loop = (s32[], f32[8,16]) while(%t), condition=%end, body=%layer, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %out = f32[8,2]{1,0} reduce-scatter(f32[8,16] %y), dimensions={1}, to_apply=%add
}
"""


def test_collectives_are_counted_as_often_as_their_loop_runs():
    assert hlo.collectives(MODULE) == {
        "all-gather": hlo.Traffic(5, 5 * 64 * 16 * 2),
        "all-reduce": hlo.Traffic(5, 5 * 8 * 16 * 4),
        "reduce-scatter": hlo.Traffic(1, 8 * 2 * 4),
    }


def test_a_loop_that_the_compiler_does_not_count_ends_at_its_conditions_number():
    counted = MODULE.replace(', backend_config={"known_trip_count":{"n":"5"}}', "")
    assert hlo.collectives(counted)["all-gather"].count == 1, "a traced end"
    counted = counted.replace("  ROOT %less", "  %most = s32[]{:T(128)} constant(7)\n  ROOT %less")
    assert hlo.collectives(counted)["all-gather"].count == 7
