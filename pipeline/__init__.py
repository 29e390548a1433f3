"""Online runs put together: what a recipe says, who judges, and who looks on; the loop itself is rl.online's."""
