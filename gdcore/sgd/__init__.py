"""Who steps: `triton` (CUDA, or interpreted), `cpu`, `stock` (PyTorch's own functions). One interface, a Stepper:

Stepper(owner, device, members, inherited)   owner is the optimizer; inherited, the stepper of that device before, if any
check()                       raises if a gradient or a state cannot be stepped; nothing is modified
ready()                       makes what is missing: state, tables
squared_norm(grad_scale)      of this stepper's gradients, unscaled: a float64 number on its device
run(grad_scale, found_inf, norm)   the step; norm is that of all gradients, None where nothing is clipped
not_started()                 parameters whose state must not be saved: every step since it was made was refused
"""
