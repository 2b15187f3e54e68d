"""Reports of a trace: `page` makes one HTML page that shows every step, `plots` PNG files, `svg` and `gif` pictures to
share; `play` replays it on the terminal.

python -m mlx_dgemma.report run.npz -o run.html
"""
