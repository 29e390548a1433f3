"""The families of generators by name; the table imports none of them, nor torch."""

# The only place of generators/core that names families: name -> module with `Family`, imported when it is used.
FAMILIES = {
    "wan": "generators.families.wan",
    "cogvideox": "generators.families.cogvideox",
    "animatediff": "generators.families.animatediff",
    "unet3d": "generators.families.unet3d",
    "hunyuan_video": "generators.families.hunyuan_video",
    "ltx": "generators.families.ltx",
    "kandinsky5": "generators.families.kandinsky5",
    "framepack": "generators.families.framepack",
    "framepack_f1": "generators.families.framepack_f1",
}
